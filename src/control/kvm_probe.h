/*
 * Is /dev/kvm usable? A device that opens proves nothing (nested virtualization that was switched
 * off below us hangs or fails at the first run), so a tiny guest in long mode has to compute a
 * known number before a deadline.
 */
#pragma once

#include <stdbool.h>

enum { KVM_PROBE_TEXT = 160 };

struct kvm_probe {
    bool exists, opens, usable;
    char text[KVM_PROBE_TEXT]; /* the reason, for people */
};

/* Takes at most a good second. Runs the guest in a child process. */
void kvm_probe(struct kvm_probe *ret_probe);
