#!/usr/bin/env python3
"""generate.py FOLDER: the inputs of the programs benchmark, the same bytes each time.

unit.c        5,000 lines of C for `gcc -O2`
project/      a C project of several files with a Makefile
text          20 MB of text, for xz
key.pem       an RSA key of 2,048 bits (of no use elsewhere: everybody can make it)
commit.sql    20,000 inserts, each its own transaction
query.sql     20,000 inserts in one transaction, and queries
"""
import base64
import itertools
import os
import random
import sys

rng = random.Random(20230610)


def pick(*words):
    return rng.choice(words)


# Shapes of functions as they stand in programs: {n} is the function's number, {p} an earlier one.
SHAPES = [
    """
static long sum_{n}(const long *values, int count)
{{
    long total = {a};
    for (int i = 0; i < count; i++) {{
        if (values[i] {relation} {b}) {{
            total += values[i] {op} {c};
        }} else {{
            total ^= values[i] >> {shift};
        }}
    }}
    return total;
}}
""",
    """
static int classify_{n}(unsigned code, struct record *record)
{{
    switch (code % {mod}) {{
    case 0:
        record->count += {a};
        return record->count > {b} ? {c} : -{c};
    case 1:
        record->total {op}= code;
        break;
    case 2:
        record->name[code % sizeof record->name] = (char)('a' + code % 26);
        return (int)strlen(record->name);
    case {mod} - 1:
        record->weight *= {f};
        break;
    default:
        return classify_{p}(code / {mod}, record);
    }}
    return record->total {relation} {b};
}}
""",
    """
static struct record *insert_{n}(struct record *head, long total, const char *name)
{{
    struct record *record = calloc(1, sizeof *record), **at = &head;
    if (!record) {{
        return head;
    }}
    record->total = total {op} {a};
    snprintf(record->name, sizeof record->name, "%s-%ld", name, total);
    while (*at && (*at)->total {relation} record->total) {{
        at = &(*at)->next;
    }}
    record->next = *at;
    *at = record;
    return head;
}}
""",
    """
static double smooth_{n}(double *grid, int width, int height)
{{
    double worst = 0;
    for (int y = 1; y + 1 < height; y++) {{
        for (int x = 1; x + 1 < width; x++) {{
            double *cell = &grid[y * width + x];
            double next = {f} * (cell[-1] + cell[1] + cell[-width] + cell[width]) - cell[0] / {c}.0;
            double change = next > *cell ? next - *cell : *cell - next;
            worst = change > worst ? change : worst;
            *cell = next;
        }}
    }}
    return worst;
}}
""",
    """
static unsigned hash_{n}(const char *text, unsigned seed)
{{
    unsigned hash = seed * {a}u + {b}u;
    for (; *text; text++) {{
        hash = (hash << {shift} | hash >> (32 - {shift})) ^ (unsigned char)*text;
        hash {op}= {c}u;
        if ((hash & {mod}) == 0) {{
            hash = hash * 31 + (unsigned)(text - (const char *)0) % {b}u;
        }}
    }}
    return hash;
}}
""",
    """
static void sort_{n}(struct record **records, int count)
{{
    for (int gap = count / 2; gap > 0; gap /= 2) {{
        for (int i = gap; i < count; i++) {{
            struct record *moving = records[i];
            int j = i;
            while (j >= gap && compare_{p}(records[j - gap], moving) {order} 0) {{
                records[j] = records[j - gap];
                j -= gap;
            }}
            records[j] = moving;
        }}
    }}
}}
""",
    """
static int parse_{n}(const char *text, long *ret_value)
{{
    long value = {a} % 7;
    int state = 0, depth = 0;
    for (const char *at = text; *at; at++) {{
        char c = *at;
        if (c >= '0' && c <= '9') {{
            value = value * {mod} + (c - '0');
            state |= 1;
        }} else if (c == '(' || c == '[') {{
            depth++;
        }} else if ((c == ')' || c == ']') && --depth < 0) {{
            return -{c};
        }} else if (c == '-' && !(state & 1)) {{
            state ^= 2;
        }} else if (c != ' ' && state & 4) {{
            return -1;
        }}
    }}
    *ret_value = state & 2 ? -value : value;
    return depth == 0;
}}
""",
    """
static int compare_{n}(const struct record *left, const struct record *right)
{{
    if (left->total != right->total) {{
        return left->total {relation} right->total ? -1 : 1;
    }}
    if (left->weight != right->weight) {{
        return left->weight {relation} right->weight * {f} ? 1 : -1;
    }}
    return strcmp(left->name, right->name);
}}
""",
]

HEAD = """/* Made by generate.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct record {
    struct record *next;
    char name[24];
    long total;
    int count;
    double weight;
};
"""

FIRST = """
static int classify_0(unsigned code, struct record *record)
{
    return (int)code + record->count;
}

static int compare_0(const struct record *left, const struct record *right)
{
    return left->count - right->count;
}
"""

# Every function is called, so that none is dropped before it is optimized.
CALLS = {
    "sum": "total += sum_{n}(values, 64);",
    "classify": "total += classify_{n}((unsigned)total, &record);",
    "insert": "list = insert_{n}(list, total & 1023, text);",
    "smooth": "total += (long)smooth_{n}(grid, 16, 16);",
    "hash": "total ^= hash_{n}(text, (unsigned)total);",
    "sort": "sort_{n}(records, 8);",
    "parse": "total += parse_{n}(text, &values[{n} % 64]);",
    "compare": "total += compare_{n}(&record, records[{n} % 8]);",
}

USE = """
long {name}(const char *text, long seed)
{{
    static long values[64];
    static double grid[256];
    static struct record record = {{.name = "record"}}, pool[8], *records[8], *list;
    long total = seed;
    for (int i = 0; i < 64; i++) {{
        values[i] = seed * i % 977;
        grid[i * 4] = (double)values[i] / 7;
        records[i % 8] = &pool[i % 8];
        pool[i % 8].total = values[i];
    }}
{calls}
    while (list) {{
        struct record *next = list->next;
        total += list->total;
        free(list);
        list = next;
    }}
    return total;
}}
"""


def functions(lines, name):
    """A C file of so many lines whose global function calls all the others."""
    text, calls, last = HEAD + FIRST, [], {"classify": 0, "compare": 0}
    for n in itertools.count(1):
        shape = rng.choice(SHAPES)
        kind = shape.split("_{n}")[0].split()[-1].lstrip("*")
        before = "classify" if kind == "classify" else "compare"
        text += shape.format(
            n=n, p=last[before], a=rng.randrange(1, 9999), b=rng.randrange(3, 999),
            c=rng.randrange(2, 64), f=round(rng.uniform(0.1, 0.9), 3), shift=rng.randrange(1, 31),
            mod=rng.choice([7, 9, 11, 13, 15]), relation=pick("<", ">", "<=", ">="),
            order=pick("<", ">"), op=pick("+", "-", "^", "|"))
        calls.append("    " + CALLS[kind].format(n=n))
        if kind in last:
            last[kind] = n
        whole = text + USE.format(name=name, calls="\n".join(calls))
        if whole.count("\n") >= lines - 12:
            return whole + "\n" * (lines - whole.count("\n"))


def project(folder, files, lines):
    os.makedirs(folder, exist_ok=True)
    names = [f"part_{i}" for i in range(files)]
    for name in names:
        write(f"{folder}/{name}.c", functions(lines, name))
    uses = "".join(f"    total = {name}(\"12 (34) five\", total % 1000);\n" for name in names)
    externs = "".join(f"long {name}(const char *text, long seed);\n" for name in names)
    write(f"{folder}/main.c",
          f"#include <stdio.h>\n{externs}int main(void)\n{{\n    long total = 1;\n{uses}"
          "    printf(\"%ld\\n\", total);\n    return 0;\n}\n")
    objects = " ".join(f"{name}.o" for name in names + ["main"])
    write(f"{folder}/Makefile",
          f"CFLAGS := -O2\nprogram: {objects}\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc $(CFLAGS) -c -o $@ $<\n")


def word():
    return "".join(pick("ba", "re", "ti", "on", "es", "mu", "lan", "cor", "si", "qu", "en", "der")
                   for _ in range(rng.randrange(1, 5)))


def text(size):
    words = [word() for _ in range(20000)]
    weights = list(itertools.accumulate(1 / (i + 3) for i in range(len(words))))
    lines, total = [], 0
    while total < size:
        line = " ".join(rng.choices(words, cum_weights=weights, k=12)) + pick(".\n", ",\n", "\n")
        lines.append(line)
        total += len(line)
    return "".join(lines)[:size]


def insert(i):
    return (f"INSERT INTO item VALUES({i}, '{word()} {word()}', {rng.randrange(100000)}, "
            f"{rng.random():.6f});\n")


TABLE = "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, number INTEGER, share REAL);\n"
QUERIES = """CREATE INDEX item_number ON item(number);
SELECT count(*), sum(number), round(avg(share), 6) FROM item;
SELECT name, count(*), max(number) FROM item GROUP BY name ORDER BY 2 DESC, 1 LIMIT 20;
SELECT count(*) FROM item a JOIN item b ON a.number = b.number WHERE a.id < b.id;
SELECT id, name FROM item WHERE name LIKE '%lanmu%' ORDER BY number LIMIT 20;
UPDATE item SET share = share * 2 WHERE number % 3 = 0;
DELETE FROM item WHERE number BETWEEN 20000 AND 30000;
SELECT substr(name, 1, 3), round(sum(share), 4) FROM item GROUP BY 1 ORDER BY 1;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000)
    SELECT sum(i * i % 7) FROM n;
"""


def prime(bits):
    while True:
        n = rng.getrandbits(bits) | 3 << bits - 2 | 1
        if any(n % small == 0 for small in range(3, 2000, 2)) or (n - 1) % 65537 == 0:
            continue
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for _ in range(32):  # Miller and Rabin
            x = pow(rng.randrange(2, n - 1), odd, n)
            if x != 1 and n - 1 not in (pow(x, 1 << i, n) for i in range(twos)):
                break
        else:
            return n


def der(tag, body):
    size = len(body)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + body


def key():
    """PKCS #1: version, n, e, d, p, q, d mod p-1, d mod q-1, 1/q mod p."""
    p, q, e = prime(1024), prime(1024), 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    numbers = [0, p * q, e, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p)]
    body = b"".join(der(2, n.to_bytes(n.bit_length() // 8 + 1, "big")) for n in numbers)
    lines = base64.encodebytes(der(0x30, body)).decode()
    return f"-----BEGIN RSA PRIVATE KEY-----\n{lines}-----END RSA PRIVATE KEY-----\n"


def write(path, data):
    with open(path, "w", encoding="ascii", newline="\n") as file:
        file.write(data)


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    write(f"{folder}/unit.c", functions(5000, "unit"))
    project(f"{folder}/project", 16, 400)
    write(f"{folder}/text", text(20_000_000))
    write(f"{folder}/commit.sql", TABLE + "".join(insert(i) for i in range(20000)) +
          "SELECT count(*), sum(number) FROM item;\n")
    write(f"{folder}/query.sql", TABLE + "BEGIN;\n" +
          "".join(insert(i) for i in range(20000)) + "COMMIT;\n" + QUERIES)
    write(f"{folder}/key.pem", key())


main()
