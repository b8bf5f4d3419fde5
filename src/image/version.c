/*
 * The order of versions without epochs: pieces without digits and numbers by turns. In the former
 * letters come before other characters, and a tilde before everything, even the end.
 */
#include "image/version.h"

#include <stdbool.h>

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int weight(char c)
{
    bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    return c == '~' ? -1 : !c || is_digit(c) ? 0 : is_letter ? c : (unsigned char)c + 256;
}

/* Numbers of any length: without leading zeroes the longer one is larger. */
static int compare_number(const char **a, const char **b)
{
    int first = 0;
    while (**a == '0') {
        (*a)++;
    }
    while (**b == '0') {
        (*b)++;
    }
    for (; is_digit(**a) && is_digit(**b); (*a)++, (*b)++) {
        first = first ? first : **a - **b;
    }
    return is_digit(**a) ? 1 : is_digit(**b) ? -1 : first;
}

int version_compare(const char *a, const char *b)
{
    while (*a || *b) {
        while ((*a && !is_digit(*a)) || (*b && !is_digit(*b))) {
            int difference = weight(*a) - weight(*b);
            if (difference) {
                return difference;
            }
            a += *a && !is_digit(*a);
            b += *b && !is_digit(*b);
        }
        int difference = compare_number(&a, &b);
        if (difference) {
            return difference;
        }
    }
    return 0;
}
