/*
 * The slowdown to native by group, from saved results (results.h), one for each CPU model:
 *
 *     picture --text FILE.md --svg FILE.svg RESULTS...
 *
 * replaces what stands between the lines "<!-- bench: begin -->" and "<!-- bench: end -->" of
 * FILE.md by conditions, picture and table, and writes the picture: bars from 1x on a logarithmic
 * axis, with a tick at each group's aim. Both are written aside and renamed; a FILE.md without
 * the two lines is an error, and then nothing is written.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "results.h"

enum { MODELS_MAX = 2, SERIES_MAX = 2 * MODELS_MAX };

/* A group as the benchmark, and as a reader names it; and what Doppel aims at. */
static const struct group {
    const char *name, *title;
    double aim;
} groups[] = {
    {"integer", "integer", 1.8},
    {"float", "floating point", 1.3},
    {"simd", "SIMD", 1.5},
    {"memory", "memory", 1.6},
    {"syscall", "system calls", 1.4},
    {"process", "process and thread", 2.2},
    {"paging", "paging", 2.0},
    {"switch", "switch and signal", 2.2},
    {"file", "file", 2.2},
    {NULL, "all of these", 1.75},
};
enum { GROUPS = sizeof groups / sizeof groups[0] };
#define BEGIN    "<!-- bench: begin -->\n"
#define END      "<!-- bench: end -->\n"
#define BOOT_AIM "a quarter of TCG's"

struct picture {
    struct results results[MODELS_MAX];
    unsigned models;
};

/* The mean of all is only told where every group has a part in it. */
static double slowdown(const struct picture *picture, unsigned group, unsigned model,
                       unsigned engine)
{
    const struct results *results = &picture->results[model];
    for (unsigned i = 0; !groups[group].name && i + 1 < GROUPS; i++) {
        if (!results_mean(results, groups[i].name, engine)) {
            return 0;
        }
    }
    return results_mean(results, groups[group].name, engine);
}

/* Three digits; "-" for what was not measured. */
static const char *number(char text[16], double value)
{
    if (!value) {
        return "-";
    }
    snprintf(text, 16, "%.*f", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value);
    return text;
}

/* Bars and columns: Doppel with each CPU model, then TCG. */
static unsigned series_engine(const struct picture *picture, unsigned series)
{
    return series < picture->models ? ENGINE_DOPPEL : ENGINE_TCG;
}

static void write_table(FILE *out, const struct picture *picture)
{
    const struct results *results = picture->results;
    unsigned count = 2 * picture->models;
    char text[16];
    fprintf(out, "| group | aim |");
    for (unsigned s = 0; s < count; s++) {
        fprintf(out, " %s, %s |", series_engine(picture, s) == ENGINE_TCG ? "TCG" : "Doppel",
                results[s % picture->models].model);
    }
    fprintf(out, "\n|---|---:|");
    for (unsigned s = 0; s < count; s++) {
        fprintf(out, "---:|");
    }
    for (unsigned g = 0; g < GROUPS; g++) {
        const char *bold = groups[g].name ? "" : "**";
        fprintf(out, "\n| %s%s%s | %s |", bold, groups[g].title, bold, number(text, groups[g].aim));
        for (unsigned s = 0; s < count; s++) {
            double value = slowdown(picture, g, s % picture->models, series_engine(picture, s));
            fprintf(out, " %s%s%s |", bold, number(text, value), bold);
        }
    }
    fprintf(out, "\n| boot to init | " BOOT_AIM " |");
    for (unsigned s = 0; s < count; s++) {
        double value = results[s % picture->models].boot_seconds[series_engine(picture, s)];
        fprintf(out, " %s%s |", number(text, value), value ? " s" : "");
    }
    fprintf(out, "\n");
}

static void write_section(FILE *out, const struct picture *picture, const char *svg)
{
    const char *slash = strrchr(svg, '/');
    fprintf(out, "Slowdown to native (geometric means of each group's rows; less is better), "
                 "by `make bench-picture`:\n\n");
    for (unsigned m = 0; m < picture->models; m++) {
        fprintf(out, "- %s: %s\n", picture->results[m].model, picture->results[m].conditions);
    }
    fprintf(out, "\n![Slowdown to native by group](%s)\n\n", slash ? slash + 1 : svg);
    write_table(out, picture);
}

/* The drawing's places, in pixels. */
enum {
    WIDTH = 760,
    LEFT = 150, /* of the axis */
    RIGHT = 706,
    TOP = 72,
    BAR = 10,
    PITCH = 11,
    GAP = 13, /* between groups */
    DIGIT = 6 /* about the width of one in a bar's label */
};

struct axis {
    double low, high;
    unsigned height; /* of the part with bars */
};

static double place(const struct axis *axis, double value)
{
    return LEFT + (RIGHT - LEFT) * log(value / axis->low) / log(axis->high / axis->low);
}

/* The i-th mark: 1, 2, 5, 10, ... and below 1 for negative ones. */
static double mark(int i)
{
    static const double steps[] = {1, 2, 5};
    int decade = (i + 300) / 3 - 100;
    return steps[(i + 300) % 3] * pow(10, decade);
}

/* From 1, or from a mark below the fastest, to a mark above the slowest. */
static struct axis make_axis(const struct picture *picture)
{
    double low = 1, high = 2;
    for (unsigned g = 0; g < GROUPS; g++) {
        high = fmax(high, groups[g].aim);
        for (unsigned s = 0; s < 2 * picture->models; s++) {
            double value = slowdown(picture, g, s % picture->models, series_engine(picture, s));
            low = value ? fmin(low, value) : low;
            high = fmax(high, value);
        }
    }
    int first = 0, last = 0;
    while (mark(first) > low && first > -30) {
        first--;
    }
    while (mark(last) < high && last < 30) {
        last++;
    }
    return (struct axis){.low = mark(first),
                         .high = fmax(high * 1.02, mark(last - 1)),
                         .height = GROUPS * (2 * picture->models * PITCH + GAP) + GAP};
}

/* The picture is shown inside pages of either colour, so it brings its own ground. */
static void write_style(FILE *out)
{
    fprintf(out, "%s",
            "<style>\n"
            "text { font: 12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; "
            "fill: #1f2328 }\n"
            ".title { font-size: 15px; font-weight: 600 } .all { font-weight: 600 }\n"
            ".value { font-size: 10px } .mark, .value { fill: #59636e }\n"
            ".ground { fill: #ffffff } .grid { stroke: #dfe3e8 } .one { stroke: #59636e }\n"
            ".doppel0 { fill: #0a5bc4 } .doppel1 { fill: #6cb0f5 }\n"
            ".tcg0 { fill: #818b95 } .tcg1 { fill: #c3cad1 }\n"
            ".aim { fill: #c8102e; stroke: #ffffff; stroke-width: 1 }\n"
            "@media (prefers-color-scheme: dark) {\n"
            "text { fill: #e6edf3 } .mark, .value { fill: #a5b0bb }\n"
            ".ground { fill: #0d1117 } .grid { stroke: #2a313a } .one { stroke: #a5b0bb }\n"
            ".doppel0 { fill: #3d8ef0 } .doppel1 { fill: #1c4f94 }\n"
            ".tcg0 { fill: #848d97 } .tcg1 { fill: #474e57 }\n"
            ".aim { fill: #ff7b72; stroke: #0d1117 }\n"
            "}\n</style>\n");
}

static void write_legend(FILE *out, const struct picture *picture)
{
    fprintf(out, "<text class=\"title\" x=\"16\" y=\"26\">Slowdown to native by group</text>\n"
                 "<text class=\"mark\" x=\"744\" y=\"26\" text-anchor=\"end\">"
                 "logarithmic; less is better</text>\n");
    double x = LEFT;
    for (unsigned s = 0; s < 2 * picture->models; s++) {
        const char *model = picture->results[s % picture->models].model;
        bool tcg = series_engine(picture, s) == ENGINE_TCG;
        fprintf(out,
                "<rect class=\"%s%u key\" x=\"%.1f\" y=\"43\" width=\"12\" height=\"%d\"/>"
                "<text x=\"%.1f\" y=\"52\">%s, %s</text>\n",
                tcg ? "tcg" : "doppel", s % picture->models, x, BAR, x + 17, tcg ? "TCG" : "Doppel",
                model);
        x += 17 + 7 * (double)((tcg ? 5 : 8) + strlen(model)) + 22;
    }
    fprintf(out,
            "<rect class=\"aim key\" x=\"%.1f\" y=\"41\" width=\"3\" height=\"13\"/>"
            "<text x=\"%.1f\" y=\"52\">aim</text>\n",
            x, x + 9);
}

static void write_axis(FILE *out, const struct axis *axis)
{
    int first = 0;
    while (mark(first) > axis->low * 1.001) {
        first--;
    }
    for (int i = first; mark(i) <= axis->high; i++) {
        double x = place(axis, mark(i));
        fprintf(out,
                "<line class=\"%s\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%u\"/>"
                "<text class=\"mark\" x=\"%.1f\" y=\"%u\" text-anchor=\"middle\">%g&#215;%s"
                "</text>\n",
                i ? "grid" : "one", x, x, TOP, TOP + axis->height, x, TOP + axis->height + 16,
                mark(i), i ? "" : " native");
    }
}

static void write_bar(FILE *out, const struct axis *axis, const struct picture *picture,
                      unsigned group, unsigned series, unsigned y)
{
    const char *model = picture->results[series % picture->models].model;
    bool tcg = series_engine(picture, series) == ENGINE_TCG;
    double value =
        slowdown(picture, group, series % picture->models, series_engine(picture, series));
    if (!value) {
        return;
    }
    char text[16];
    number(text, value);
    double one = place(axis, 1), end = place(axis, value);
    double right = fmax(one, end), aim = place(axis, groups[group].aim);
    double label = right + 4;
    if (!tcg && aim > right - 3 && aim < label + DIGIT * (double)strlen(text)) {
        label = aim + 5; /* behind the tick, not under it */
    }
    fprintf(out,
            "<rect class=\"%s%u bar\" x=\"%.2f\" y=\"%u\" width=\"%.2f\" height=\"%d\">"
            "<title>%s, %s, %s: %s&#215;</title></rect>"
            "<text class=\"value\" x=\"%.1f\" y=\"%u\">%s</text>\n",
            tcg ? "tcg" : "doppel", series % picture->models, fmin(one, end), y,
            fmax(fabs(end - one), 1), BAR, groups[group].title, tcg ? "TCG" : "Doppel", model, text,
            label, y + BAR - 1, text);
}

static void write_svg(FILE *out, const struct picture *picture)
{
    struct axis axis = make_axis(picture);
    unsigned bars = 2 * picture->models * PITCH, height = TOP + axis.height + 30;
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%u\" "
            "viewBox=\"0 0 %d %u\" role=\"img\">\n<title>Slowdown to native by group</title>\n",
            WIDTH, height, WIDTH, height);
    write_style(out);
    fprintf(out, "<rect class=\"ground\" width=\"%d\" height=\"%u\" rx=\"6\"/>\n", WIDTH, height);
    write_legend(out, picture);
    write_axis(out, &axis);
    for (unsigned g = 0; g < GROUPS; g++) {
        unsigned y = TOP + GAP + g * (bars + GAP);
        fprintf(out, "<text%s x=\"%d\" y=\"%u\" text-anchor=\"end\">%s</text>\n",
                groups[g].name ? "" : " class=\"all\"", LEFT - 12, y + bars / 2 + 4,
                groups[g].title);
        for (unsigned s = 0; s < 2 * picture->models; s++) {
            write_bar(out, &axis, picture, g, s, y + s * PITCH);
        }
        fprintf(out,
                "<rect class=\"aim\" x=\"%.2f\" y=\"%u\" width=\"3\" height=\"%u\">"
                "<title>%s: aim %g&#215;</title></rect>\n",
                place(&axis, groups[g].aim) - 1.5, y - 2, picture->models * PITCH + 1,
                groups[g].title, groups[g].aim);
    }
    fprintf(out, "</svg>\n");
}

__attribute__((format(printf, 1, 2))) static int complain(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "picture: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    return -1;
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file) {
        complain("open '%s': %s", path, strerror(errno));
        return NULL;
    }
    char *text, block[4096];
    size_t size, got;
    FILE *out = open_memstream(&text, &size);
    while ((got = fread(block, 1, sizeof block, file))) {
        fwrite(block, 1, got, out);
    }
    fclose(out);
    if (ferror(file)) {
        complain("read '%s': %s", path, strerror(errno));
        free(text);
        text = NULL;
    }
    fclose(file);
    return text;
}

/* `old` with a new section, or NULL. */
static char *replace_section(const struct picture *picture, const char *old, const char *svg)
{
    const char *begin = strstr(old, BEGIN), *end = begin ? strstr(begin, END) : NULL;
    if (!end) {
        return NULL;
    }
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    fwrite(old, 1, (size_t)(begin - old), out);
    fprintf(out, "%s", BEGIN);
    write_section(out, picture, svg);
    fprintf(out, "%s", end);
    fclose(out);
    return text;
}

static int write_both(const struct picture *picture, const char *path, const char *svg)
{
    char *old = read_file(path);
    if (!old) {
        return -1;
    }
    char *text = replace_section(picture, old, svg);
    free(old);
    if (!text) {
        return complain("'%s' has no lines '%.*s' and '%.*s'", path, (int)sizeof BEGIN - 2, BEGIN,
                        (int)sizeof END - 2, END);
    }
    char *drawing;
    size_t size;
    FILE *out = open_memstream(&drawing, &size);
    write_svg(out, picture);
    fclose(out);
    int r = 0;
    if (write_aside(svg, drawing, size)) {
        r = complain("write '%s': %s", svg, strerror(errno));
    } else if (write_aside(path, text, strlen(text))) {
        r = complain("write '%s': %s", path, strerror(errno));
    }
    free(text);
    free(drawing);
    return r;
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"text", required_argument, NULL, 't'},
        {"svg", required_argument, NULL, 's'},
        {NULL, 0, NULL, 0},
    };
    static struct picture picture;
    const char *text = NULL, *svg = NULL;
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (option == '?') {
            return 2;
        }
        *(option == 't' ? &text : &svg) = optarg;
    }
    if (!text || !svg || optind == argc || argc - optind > MODELS_MAX) {
        complain("wants --text FILE.md --svg FILE.svg and one or two files of results");
        return 2;
    }
    for (; optind < argc; optind++) {
        if (results_load(&picture.results[picture.models++], argv[optind])) {
            return 1;
        }
    }
    return write_both(&picture, text, svg) ? 1 : 0;
}
