/*
 * How a vCPU waits for others: halted, until a kick comes, and in the guest's own loops of PAUSE.
 * Threads of vCPUs compete for host CPUs, with each other and with other programs, which a guest
 * does not know: waiting must neither burn what another vCPU needs nor make a quick answer slow.
 */
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine/translate/helper.h"

static void futex(_Atomic uint32_t *word, int operation, uint32_t value,
                  const struct timespec *until)
{
    syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, until, NULL,
            FUTEX_BITSET_MATCH_ANY);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void block_kick(struct block *block, unsigned kicks, uint8_t sipi_vector)
{
    if (kicks & KICK_SIPI) {
        block->vcpu.sipi_vector = sipi_vector;
    }
    uint32_t before = atomic_fetch_or(&block->vcpu.kicks, kicks);
    block->poll_now = 1;
    if ((before & kicks) == kicks && !(kicks & KICK_STOP)) {
        return;
    }
    signals_kick(block);
    if (block->sleeps) { /* who sets it later finds the kick */
        futex(&block->vcpu.kicks, FUTEX_WAKE_BITSET, 1, NULL);
    }
}

bool block_has_work(const struct block *block)
{
    const struct cpu_state *state = &block->vcpu.state;
    uint32_t answers = KICK_STOP | KICK_INIT;
    if (state->activity == ACTIVITY_WAIT_SIPI) {
        answers |= KICK_SIPI;
    } else {
        answers |= KICK_NMI | KICK_UNHALT | (state->rflags & FLAG_IF ? KICK_INTERRUPT : 0);
    }
    return block->vcpu.kicks & answers;
}

static void sleep_until(struct block *block, uint64_t deadline_ns)
{
    const struct timespec until = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                                   .tv_nsec = (long)(deadline_ns % 1000000000u)};
    block->sleeps = true;
    for (;;) {
        uint32_t kicks = block->vcpu.kicks;
        if (block_has_work(block) || (deadline_ns != UINT64_MAX && now_ns() >= deadline_ns)) {
            break;
        }
        futex(&block->vcpu.kicks, FUTEX_WAIT_BITSET, kicks,
              deadline_ns == UINT64_MAX ? NULL : &until);
    }
    block->sleeps = false;
}

/*
 * vCPUs that answer each other wait shortly and often, and a sleep between would take longer than
 * the answer. Whether it pays is seen by how long the last waits were; a guest without work makes
 * long ones, and sleeps at once.
 */
void block_wait(struct block *block, uint64_t deadline_ns)
{
    uint64_t start = now_ns(), now = start, end = start + block->poll_ns;
    vcpu_wait_begins(&block->vcpu);
    while (!block_has_work(block) && now < end && now < deadline_ns) {
        __builtin_ia32_pause();
        now = now_ns();
    }
    if (!block_has_work(block)) {
        sleep_until(block, deadline_ns);
        now = now_ns();
    }
    vcpu_wait_ends(&block->vcpu);
    if (now - start > POLL_MOST_NS) {
        block->poll_ns = 0;
    } else if (now - start > block->poll_ns && block->vm->config.cpus > 1) {
        uint64_t next = block->poll_ns ? 2 * block->poll_ns : POLL_FIRST_NS;
        block->poll_ns = next < POLL_MOST_NS ? next : POLL_MOST_NS;
    }
}

/*
 * The thread of the vCPU that is waited for may be on this host CPU's queue: the wake-up of a vCPU
 * often displaces who sent the interrupt, in the middle of a lock that the other wants next.
 */
void block_yield(struct block *block)
{
    vcpu_count(&block->vcpu, COUNT_EXIT_PAUSE);
    block->vcpu.pauses = PAUSES_UNTIL_YIELD;
    world_park(block);
    sched_yield();
    world_unpark(block);
}

uint64_t helper_pause(struct block *block, uint32_t number)
{
    struct place place = place_of(block, number);
    block_yield(block);
    /* Meanwhile others may have changed the code here, or forgotten its unit. */
    return place_is_current(block, &place) ? place_execute(block, &place)
                                           : place_start_over(block, &place);
}
