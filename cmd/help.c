/* Help: by example first, then the list of options, which comes from the table of machine/config.
 */
#include <stdio.h>
#include <string.h>

#include "cmd.h"
#include "machine/config.h"
#include "machine/report.h"

static const char overview[] =
    "\n"
    "Boot the kernel of this machine to the shell of its initial RAM disk:\n"
    "  doppel run --kernel /boot/vmlinuz --initrd /boot/initrd.img \\\n"
    "      --append 'console=ttyS0 break=top'\n"
    "\n"
    "Two CPUs, a gigabyte, a disk image, and the root file system on it:\n"
    "  doppel run --kernel vmlinuz --initrd initrd.img --cpus 2 --memory 1G \\\n"
    "      --disk root.img,format=raw --append 'console=ttyS0 root=/dev/vda1'\n"
    "\n"
    "Leave with Ctrl-a x. Standard output carries the guest's bytes only.\n";

static const char keys[] = "Keys, when standard input is a terminal:\n"
                           "  Ctrl-a x       end the machine\n"
                           "  Ctrl-a d       leave it running, where it is another process\n"
                           "  Ctrl-a h       show these keys\n"
                           "  Ctrl-a b       send a break (Linux: magic SysRq)\n"
                           "  Ctrl-a Ctrl-a  send Ctrl-a\n";

static const char statuses[] =
    "Exit status of 'doppel run':\n"
    "  0    the guest switched itself off (or reset, with --no-reboot), or you left\n"
    "  1    an error of ours before the guest started\n"
    "  2    wrong usage\n"
    "  4    an error of ours while the guest ran\n"
    "  6    triple fault, with --no-reboot\n"
    "  odd  the guest wrote V to the debug-exit port: V*2+1, modulo 256\n";

static const char stats[] =
    "doppel stats NAME [--json] [--watch]\n"
    "\n"
    "Shows where the time of a running machine's guest goes: why guest code left its fast path, "
    "how\n"
    "often, and which devices it used. NAME is that of 'doppel run --name NAME', or the one that "
    "a\n"
    "machine without it tells at its start.\n"
    "\n"
    "  --json    all facts, each vCPU and in total, under names that do not change\n"
    "  --watch   again each second, with rates; Ctrl-c leaves\n"
    "\n"
    "Try it:\n"
    "  doppel run --name web --kernel vmlinuz --initrd initrd.img --append console=ttyS0\n"
    "  doppel stats web --watch\n"
    "\n"
    "'doppel run --trace stats' prints the same table at the machine's end. More to look with:\n"
    "  doppel run --trace LIST ...   events as they happen (units, flush, exits...)\n"
    "  doppel run --trace code ...   guest and host code side by side\n"
    "  doppel run --perf-map ...     names for 'perf record -p PID' and 'perf report'\n";

static const char disk[] =
    "doppel disk create FILE SIZE [--format qcow2|raw] [--force]   an empty image, qcow2 by "
    "default\n"
    "doppel disk create FILE [SIZE] --backing [raw:|qcow2:]BASE    one that begins as a copy of "
    "BASE\n"
    "doppel disk info FILE [--json]                 what it is, how large, on what it is based\n"
    "doppel disk check FILE [--repair] [--json]     is a qcow2 image sound? make it so\n"
    "doppel disk convert FILE NEW --to qcow2|raw    copy into another format; zeros become holes\n"
    "doppel disk resize FILE SIZE [--shrink]        a larger disk, or a smaller one\n"
    "doppel disk map FILE [--json]                  where its contents are\n"
    "\n"
    "A disk of 20 GB that takes no space until it is written:\n"
    "  doppel disk create web.qcow2 20G\n"
    "  doppel run ... --disk web.qcow2,format=qcow2\n"
    "\n"
    "Two machines that share what is the same:\n"
    "  doppel disk create one.qcow2 --backing raw:base.img\n"
    "  doppel disk create two.qcow2 --backing raw:base.img\n"
    "  doppel run ... --disk one.qcow2,format=qcow2,backing=base.img\n"
    "\n"
    "The file that an image is based on is opened only if you name it (--backing FILE, or "
    "backing=FILE\n"
    "in --disk), whatever stands in the image: images come from strangers. Write it again for "
    "each\n"
    "file of a longer chain.\n"
    "\n"
    "  --format FORMAT        what FILE is (raw or qcow2), where its first bytes would not be "
    "believed\n"
    "  --backing FILE         what FILE is based on, for convert, resize and map\n"
    "  --cluster-size SIZE    of a new qcow2 image, 512 to 2M (64K)\n"
    "  --compat 2|3           its version (3)\n"
    "  --refcount-bits N      1 to 64 (16)\n"
    "  --lazy-refcounts       fewer writes, and a repair after a crash\n"
    "  --force                replace a file that is there\n"
    "\n"
    "doppel run --disk FILE[,KEY=VALUE...]:\n"
    "  format=raw|qcow2       what FILE is\n"
    "  readonly               the guest cannot change it\n"
    "  device=virtio|nvme     what the guest sees (virtio)\n"
    "  cache=MODE             writeback (default), none, writethrough, directsync or unsafe, as in "
    "QEMU\n"
    "  serial=TEXT            the serial number that the guest sees\n"
    "  errors=report|stop     what the host fails is the guest's I/O error, or pauses the machine\n"
    "                         until 'doppel resume' tries again (report)\n"
    "  backing=[FORMAT:]FILE  what a qcow2 image is based on; again for each file of a chain\n"
    "\n"
    "Exit status: 0 done, or sound; 1 failed; 2 wrong usage; check: 8 lost space only, 10 "
    "errors.\n";

static void print_run(const char *command)
{
    printf("doppel %s [IMAGE|--kernel FILE] [options]\n\n", command);
    for (const struct vm_option *option = vm_options(); option->name; option++) {
        char left[64];
        snprintf(left, sizeof left, "--%s %s", option->name,
                 option->argument ? option->argument : "");
        printf("  %-40s %s\n", left, option->help);
    }
    for (const struct command_option *option = run_own_options(); option->name; option++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s %s", option->name[1] ? "--" : "-", option->name,
                 option->argument ? option->argument : "");
        printf("  %-40s %s\n", left, option->help);
    }
    printf(
        "\nA comma inside a value of a resource option is written twice (,,).\n\n"
        "A machine of an image is kept when it is off, and so is one of 'launch' or of --keep;\n"
        "--rm drops it. It has a folder and a process of its own, and its console can be left and\n"
        "seen again ('doppel console'). 'run --kernel' lives as long as its process, as with "
        "other\n"
        "monitors, and keeps nothing.\n");
}

static void print_overview(void)
{
    printf("doppel runs a virtual machine, with or without hardware virtualization.\n\n");
    for (const struct command *command = commands; command->name; command++) {
        char left[64];
        snprintf(left, sizeof left, "doppel %s %s", command->name, command->operands);
        printf("  %-46s %s\n", left, command->help);
    }
    fputs(overview, stdout);
}

void help_command(const struct command *command)
{
    printf("doppel %s %s%s\n\n%s\n", command->name, command->operands,
           command->options ? " [options]" : "", command->help);
    for (const struct command_option *at = command->options; at && at->name; at++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s %s", at->name[1] ? "--" : "-", at->name,
                 at->argument ? at->argument : "");
        printf("%s  %-24s %s\n", at == command->options ? "\n" : "", left, at->help);
    }
}

static bool print_command(const char *name)
{
    for (const struct command *command = commands; command->name; command++) {
        if (!strcmp(command->name, name)) {
            help_command(command);
            return true;
        }
    }
    return false;
}

void help_first_steps(void)
{
    report("A Debian to live in: doppel image build debian:12 && doppel run debian:12\n"
           "Boot a kernel:       doppel run --kernel /boot/vmlinuz --initrd /boot/initrd.img "
           "--append console=ttyS0\n"
           "More and examples:   doppel help        What this host offers:   doppel doctor\n");
}

int command_help(int argc, char **argv)
{
    if (argc > 2) {
        report("doppel help: one page at a time\n");
        return STATUS_USAGE;
    }
    if (argc < 2) {
        print_overview();
    } else if (!strcmp(argv[1], "run") || !strcmp(argv[1], "launch")) {
        print_run(argv[1]);
    } else if (!strcmp(argv[1], "disk")) {
        fputs(disk, stdout);
    } else if (!strcmp(argv[1], "stats")) {
        fputs(stats, stdout);
    } else if (!strcmp(argv[1], "keys")) {
        fputs(keys, stdout);
    } else if (!strcmp(argv[1], "status")) {
        fputs(statuses, stdout);
    } else if (!print_command(argv[1])) {
        report("doppel help: no page '%s' (known: each command, keys, status)\n", argv[1]);
        return STATUS_USAGE;
    }
    return STATUS_OK;
}
