/*
 * doppel completion bash|zsh|fish: what those shells need to complete commands, options, their
 * values and the names of machines, made of the table of commands. `doppel completion names KIND`
 * is what the scripts ask for names: it looks at locks and folders only, so it is quick.
 */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "cmd.h"
#include "control/machine.h"
#include "control/registry.h"
#include "image/store.h"
#include "machine/config.h"
#include "machine/report.h"

static const char *const kinds[] = {
    [NAMES_NONE] = "none", [NAMES_RUNNING] = "running", [NAMES_STOPPED] = "stopped",
    [NAMES_KEPT] = "kept", [NAMES_ALL] = "all",         [NAMES_IMAGES] = "images",
};

/* ---- names ---- */

static void print_kept(enum command_names kind)
{
    struct machine_names kept;
    if (machine_list(&kept)) {
        return;
    }
    for (size_t i = 0; i < kept.count; i++) {
        if (kind != NAMES_STOPPED || !registry_is_running(kept.names[i])) {
            puts(kept.names[i]);
        }
    }
    machine_names_fini(&kept);
}

static void print_running(bool without_kept)
{
    struct registry_names running;
    if (registry_names(&running)) {
        return;
    }
    for (size_t i = 0; i < running.count; i++) {
        if (!without_kept || !machine_exists(running.names[i])) {
            puts(running.names[i]);
        }
    }
    registry_names_fini(&running);
}

static void print_images(void)
{
    struct store store;
    json_t *records = NULL, *record;
    size_t i;
    if (store_open(&store) || store_list(&store, &records)) {
        return;
    }
    json_array_foreach(records, i, record)
    {
        puts(json_string_value(json_object_get(record, "name")));
    }
    json_decref(records);
    store_close(&store);
}

static int print_names(const char *kind)
{
    if (!strcmp(kind, kinds[NAMES_RUNNING])) {
        print_running(false);
    } else if (!strcmp(kind, kinds[NAMES_STOPPED])) {
        print_kept(NAMES_STOPPED);
    } else if (!strcmp(kind, kinds[NAMES_KEPT])) {
        print_kept(NAMES_KEPT);
    } else if (!strcmp(kind, kinds[NAMES_ALL])) {
        print_kept(NAMES_ALL);
        print_running(true);
    } else if (!strcmp(kind, kinds[NAMES_IMAGES])) {
        print_images();
    } else {
        report("doppel completion: names are running, stopped, kept, all or images\n");
        return STATUS_USAGE;
    }
    return STATUS_OK;
}

/* ---- options of all commands, in one form ---- */

/* What may be typed for an option's value. */
enum value_kind { VALUE_NONE, VALUE_TEXT, VALUE_FILE, VALUE_FOLDER, VALUE_WORDS };

static enum value_kind value_kind(const char *argument)
{
    if (!argument) {
        return VALUE_NONE;
    }
    if (!strncmp(argument, "FILE", 4)) {
        return VALUE_FILE;
    }
    if (!strncmp(argument, "DIR", 3)) {
        return VALUE_FOLDER;
    }
    bool is_word = *argument >= 'a' && *argument <= 'z';
    return is_word && strchr(argument, '|') ? VALUE_WORDS : VALUE_TEXT;
}

/* "a|b|file=PATH,c=d" as words: a b file= */
static void print_words(const char *argument)
{
    const char *separator = "";
    for (const char *at = argument; *at && !strchr("[, ", *at);) {
        size_t length = strcspn(at, "|,[ "), word = strcspn(at, "=|,[ ");
        if (*at != '.') { /* "...": help does not name them all */
            printf("%s%.*s", separator, (int)(word < length ? word + 1 : length), at);
            separator = " ";
        }
        at += length + (at[length] == '|');
    }
}

/* Call for each option; those of run are in two tables. */
static void for_each_option(const struct command *command,
                            void (*call)(const struct command *command, const char *name,
                                         const char *argument, const char *help))
{
    bool is_run = !strcmp(command->name, "run") || !strcmp(command->name, "launch");
    for (const struct vm_option *option = vm_options(); is_run && option->name; option++) {
        call(command, option->name, option->argument, option->help);
    }
    const struct command_option *option = is_run ? run_own_options() : command->options;
    for (; option && option->name; option++) {
        call(command, option->name, option->argument, option->help);
    }
}

/* Does the command's first operand come from a list: "build|add|list [options]"? */
static bool has_operand_words(const struct command *command)
{
    return value_kind(*command->operands ? command->operands : NULL) == VALUE_WORDS;
}

static const char *dashes(const char *option)
{
    return option[1] ? "--" : "-";
}

/* In single quotes of a shell, whose own are taken out. */
static void print_quoted(const char *text, const char *left_out)
{
    for (; *text; text++) {
        if (!strchr(left_out, *text)) {
            putchar(*text);
        }
    }
}

static void print_commands(void)
{
    for (const struct command *command = commands; command->name; command++) {
        printf("%s%s", command == commands ? "" : " ", command->name);
    }
}

/* ---- bash ---- */

static void bash_name(const struct command *command, const char *name, const char *argument,
                      const char *help)
{
    printf(" %s%s", dashes(name), name);
}

static void bash_value(const struct command *command, const char *name, const char *argument,
                       const char *help)
{
    enum value_kind kind = value_kind(argument);
    if (kind == VALUE_NONE) {
        return;
    }
    printf("    %s:%s%s)\n", command->name, dashes(name), name);
    if (kind == VALUE_WORDS) {
        printf("        _doppel_words \"");
        print_words(argument);
        printf("\"\n");
    } else if (kind != VALUE_TEXT) {
        printf("        _doppel_files %s\n", kind == VALUE_FILE ? "-f" : "-d");
    }
    printf("        return\n        ;;\n");
}

static void print_bash(void)
{
    fputs("# bash completion for doppel, made by 'doppel completion bash'\n"
          "_doppel_words() {\n"
          "    mapfile -t COMPREPLY < <(compgen -W \"$1\" -- \"$cur\")\n"
          "}\n"
          "_doppel_files() {\n"
          "    compopt -o filenames\n"
          "    mapfile -t COMPREPLY < <(compgen \"$1\" -- \"$cur\")\n"
          "}\n"
          "_doppel() {\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}\n"
          "    local command=${COMP_WORDS[1]} options='' words='' names=none\n"
          "    COMPREPLY=()\n"
          "    if ((COMP_CWORD == 1)); then\n"
          "        _doppel_words '",
          stdout);
    print_commands();
    fputs("'\n"
          "        return\n"
          "    fi\n"
          "    case $command:$prev in\n",
          stdout);
    for (const struct command *command = commands; command->name; command++) {
        for_each_option(command, bash_value);
    }
    fputs("    esac\n"
          "    case $command in\n",
          stdout);
    for (const struct command *command = commands; command->name; command++) {
        printf("    %s)\n        options='", command->name);
        for_each_option(command, bash_name);
        printf("'\n        names=%s\n", kinds[command->names]);
        if (has_operand_words(command)) {
            printf("        ((COMP_CWORD > 2)) || words='");
            print_words(command->operands);
            printf("'\n");
        }
        printf("        ;;\n");
    }
    fputs("    esac\n"
          "    if [[ $cur == -* ]]; then\n"
          "        _doppel_words \"$options\"\n"
          "    elif [[ -n $words ]]; then\n"
          "        _doppel_words \"$words\"\n"
          "    elif [[ $names != none ]]; then\n"
          "        _doppel_words \"$(doppel completion names \"$names\" 2>/dev/null)\"\n"
          "        if [[ $command == cp ]]; then\n"
          "            compopt -o nospace\n"
          "            COMPREPLY=(\"${COMPREPLY[@]/%/:}\")\n"
          "            mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- \"$cur\")\n"
          "        fi\n"
          "    elif [[ $command == help ]]; then\n"
          "        _doppel_words '",
          stdout);
    print_commands();
    fputs(" keys status'\n"
          "    fi\n"
          "}\n"
          "complete -F _doppel doppel\n",
          stdout);
}

/* ---- zsh ---- */

static void zsh_option(const struct command *command, const char *name, const char *argument,
                       const char *help)
{
    printf("            '*%s%s[", dashes(name), name);
    print_quoted(help, "'[]:\\");
    printf("]");
    switch (value_kind(argument)) {
    case VALUE_NONE:
        break;
    case VALUE_TEXT:
        printf(":value: ");
        break;
    case VALUE_FILE:
        printf(":file:_files");
        break;
    case VALUE_FOLDER:
        printf(":folder:_files -/");
        break;
    case VALUE_WORDS:
        printf(":value:(");
        print_words(argument);
        printf(")");
        break;
    }
    printf("' \\\n");
}

static void print_zsh(void)
{
    fputs("#compdef doppel\n"
          "# zsh completion for doppel, made by 'doppel completion zsh'\n"
          "_doppel_names() {\n"
          "    local -a names\n"
          "    names=(${(f)\"$(doppel completion names $1 2>/dev/null)\"})\n"
          "    compadd -a names\n"
          "}\n"
          "_doppel() {\n"
          "    if ((CURRENT == 2)); then\n"
          "        local -a known\n"
          "        known=(\n",
          stdout);
    for (const struct command *command = commands; command->name; command++) {
        printf("            '%s:", command->name);
        print_quoted(command->help, "'\\");
        printf("'\n");
    }
    fputs("        )\n"
          "        _describe command known\n"
          "        return\n"
          "    fi\n"
          "    local command=$words[2]\n"
          "    shift words\n"
          "    ((CURRENT--))\n"
          "    case $command in\n",
          stdout);
    for (const struct command *command = commands; command->name; command++) {
        printf("    %s)\n        _arguments \\\n", command->name);
        for_each_option(command, zsh_option);
        if (!strcmp(command->name, "cp")) {
            printf("            '*:file:_files'\n        _doppel_names %s\n        ;;\n",
                   kinds[command->names]);
        } else if (command->names != NAMES_NONE) {
            printf("            '*:machine:_doppel_names %s'\n        ;;\n", kinds[command->names]);
        } else if (has_operand_words(command)) {
            printf("            '1:what:(");
            print_words(command->operands);
            printf(")'\n        ;;\n");
        } else {
            printf("            '*: : '\n        ;;\n");
        }
    }
    fputs("    esac\n"
          "}\n"
          "compdef _doppel doppel\n",
          stdout);
}

/* ---- fish ---- */

static void fish_option(const struct command *command, const char *name, const char *argument,
                        const char *help)
{
    printf("complete -c doppel -n '__fish_seen_subcommand_from %s' -%c %s", command->name,
           name[1] ? 'l' : 's', name);
    switch (value_kind(argument)) {
    case VALUE_NONE:
        break;
    case VALUE_TEXT:
        printf(" -x");
        break;
    case VALUE_FILE:
        printf(" -r -F");
        break;
    case VALUE_FOLDER:
        printf(" -x -a '(__fish_complete_directories)'");
        break;
    case VALUE_WORDS:
        printf(" -x -a '");
        print_words(argument);
        printf("'");
        break;
    }
    printf(" -d '");
    print_quoted(help, "'\\");
    printf("'\n");
}

static void print_fish(void)
{
    fputs("# fish completion for doppel, made by 'doppel completion fish'\n"
          "complete -c doppel -f\n",
          stdout);
    for (const struct command *command = commands; command->name; command++) {
        printf("complete -c doppel -n __fish_use_subcommand -a %s -d '", command->name);
        print_quoted(command->help, "'\\");
        printf("'\n");
        for_each_option(command, fish_option);
        if (command->names != NAMES_NONE) {
            printf(
                "complete -c doppel -n '__fish_seen_subcommand_from %s' %s-a '(doppel completion "
                "names %s)'\n",
                command->name, strcmp(command->name, "cp") ? "" : "-F ", kinds[command->names]);
        }
    }
}

int command_completion(const struct arguments *arguments)
{
    const char *what = arguments->operands[0];
    if (!strcmp(what, "names") && arguments->count == 2) {
        return print_names(arguments->operands[1]);
    }
    if (arguments->count > 1) {
        report("doppel completion: one shell at a time\n");
        return STATUS_USAGE;
    }
    if (!strcmp(what, "bash")) {
        print_bash();
    } else if (!strcmp(what, "zsh")) {
        print_zsh();
    } else if (!strcmp(what, "fish")) {
        print_fish();
    } else {
        report("doppel completion: '%s' is not one of bash, zsh, fish\n", what);
        return STATUS_USAGE;
    }
    return STATUS_OK;
}
