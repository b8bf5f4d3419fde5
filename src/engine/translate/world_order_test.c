/*
 * Stopping the world step by step, with vCPUs that only say that they are at a safe point: who
 * waits for whom, who is woken, and what has happened by then.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/translate/test_world.h"

enum {
    PAGES = 0x20000,
    PAGE_COUNT = 80, /* more than the drops that are kept one by one */
    TURNS = 100,
    A_WHILE_MS = 20,
    LONG_MS = 10000,
};

/* vCPUs that do not run, all parked. */
static void make_vcpus(struct fixture *fixture, struct block *ret_blocks[VCPUS])
{
    struct cpu_state state;
    test_guest_state(&state, CODE);
    for (unsigned i = 0; i < VCPUS; i++) {
        struct engine_vcpu *vcpu;
        assert_int_equal(translate_engine.vcpu_new((struct engine_vm *)fixture->vm, i, &vcpu), 0);
        translate_engine.set_state(vcpu, &state);
        ret_blocks[i] = (struct block *)vcpu;
        ret_blocks[i]->vcpu.kicks = 0;
        ret_blocks[i]->poll_now = 0;
    }
}

static void free_vcpus(struct block *blocks[VCPUS])
{
    for (unsigned i = 0; i < VCPUS; i++) {
        translate_engine.vcpu_free((struct engine_vcpu *)blocks[i]);
    }
}

/* Somebody on a thread of their own. */
struct actor {
    struct fixture *fixture;
    struct block *block;
    void (*act)(struct actor *actor);
    pthread_t thread;
    gpa_t page;
    _Atomic bool is_stopped, may_resume, is_done;
};

static bool comes_true(const _Atomic bool *flag, unsigned patience_ms)
{
    for (unsigned i = 0; i < patience_ms * 10 && !*flag; i++) {
        usleep(100);
    }
    return *flag;
}

static void *actor_main(void *argument)
{
    struct actor *actor = argument;
    actor->act(actor);
    actor->is_done = true;
    return NULL;
}

static void actor_start(struct actor *actor, struct fixture *fixture, struct block *block,
                        void (*act)(struct actor *actor))
{
    *actor = (struct actor){.fixture = fixture, .block = block, .act = act, .page = actor->page};
    assert_int_equal(pthread_create(&actor->thread, NULL, actor_main, actor), 0);
}

static void actor_end(struct actor *actor)
{
    assert_true(comes_true(&actor->is_done, LONG_MS));
    pthread_join(actor->thread, NULL);
}

static void park(struct actor *actor)
{
    world_park(actor->block);
}

static void unpark(struct actor *actor)
{
    world_unpark(actor->block);
}

static void stop(struct actor *actor)
{
    world_stop(actor->fixture->vm, NULL, COUNT_WORLD_TRANSITION);
    actor->is_stopped = true;
    comes_true(&actor->may_resume, LONG_MS);
    world_resume(actor->fixture->vm);
}

/* The store that gives a page its frame: mappings of the page of zeros are dropped everywhere. */
static void write_first(struct actor *actor)
{
    if (memory_write(actor->fixture->memory, actor->page, "x", 1) == 0) {
        actor->is_stopped = true;
    }
}

static void who_stops_waits_for_all_and_is_woken(void **state)
{
    struct fixture *fixture = *state;
    struct block *blocks[VCPUS];
    struct actor stopper = {0}, returning = {0}, other = {0};
    make_vcpus(fixture, blocks);
    world_unpark(blocks[0]);
    world_unpark(blocks[1]);
    actor_start(&stopper, fixture, NULL, stop);
    assert_false(comes_true(&stopper.is_stopped, A_WHILE_MS));
    for (unsigned i = 0; i < VCPUS;
         i++) { /* whoever runs is told, whoever is parked is left alone */
        assert_int_equal(blocks[i]->vcpu.kicks & KICK_WORLD, i < 2 ? KICK_WORLD : 0);
        assert_int_equal(blocks[i]->poll_now, i < 2);
    }
    world_park(blocks[0]);
    assert_false(comes_true(&stopper.is_stopped, A_WHILE_MS));
    world_park(blocks[1]);
    assert_true(comes_true(&stopper.is_stopped, LONG_MS));

    actor_start(&returning, fixture, blocks[0], unpark);
    actor_start(&other, fixture, blocks[2], unpark);
    assert_false(comes_true(&returning.is_done, A_WHILE_MS));
    world_park(blocks[1]); /* wakes those who wait, without a reason for them */
    assert_false(comes_true(&returning.is_done, A_WHILE_MS));
    assert_true(blocks[0]->parked);
    stopper.may_resume = true;
    actor_end(&returning);
    actor_end(&other);
    actor_end(&stopper);
    assert_false(blocks[0]->parked || blocks[2]->parked);
    world_park(blocks[0]);
    world_park(blocks[2]);
    free_vcpus(blocks);
}

/* Nobody looks at the state of another without the lock. */
static void everybody_takes_the_lock(void **state)
{
    struct fixture *fixture = *state;
    struct block *blocks[VCPUS];
    struct actor actors[3] = {0};
    make_vcpus(fixture, blocks);
    world_unpark(blocks[0]);
    pthread_mutex_lock(&fixture->vm->world_lock);
    actor_start(&actors[0], fixture, blocks[0], park);
    actor_start(&actors[1], fixture, blocks[1], unpark);
    usleep(1000 * A_WHILE_MS);
    assert_false(actors[0].is_done || blocks[0]->parked);
    assert_false(actors[1].is_done || !blocks[1]->parked);
    pthread_mutex_unlock(&fixture->vm->world_lock);
    actor_end(&actors[0]);
    actor_end(&actors[1]);
    world_park(blocks[1]);

    pthread_mutex_lock(&fixture->vm->world_lock);
    actor_start(&actors[2], fixture, NULL, stop);
    assert_false(comes_true(&actors[2].is_stopped, A_WHILE_MS));
    assert_false(fixture->vm->world_stopping);
    pthread_mutex_unlock(&fixture->vm->world_lock);
    assert_true(comes_true(&actors[2].is_stopped, LONG_MS));
    pthread_mutex_lock(&fixture->vm->world_lock);
    actors[2].may_resume = true;
    assert_false(comes_true(&actors[2].is_done, A_WHILE_MS));
    assert_true(fixture->vm->world_stopping);
    pthread_mutex_unlock(&fixture->vm->world_lock);
    actor_end(&actors[2]);

    assert_int_equal(tlb_fill(&blocks[0]->vcpu, PAGES, 0), TLB_FILLED);
    pthread_mutex_lock(&fixture->vm->world_lock);
    actors[0].page = PAGES;
    actor_start(&actors[0], fixture, NULL, write_first);
    assert_false(comes_true(&actors[0].is_done, A_WHILE_MS));
    assert_int_equal(fixture->vm->drop_count, 0);
    pthread_mutex_unlock(&fixture->vm->world_lock);
    actor_end(&actors[0]);
    assert_int_equal(memory_set_code(fixture->memory, PAGES >> PAGE_SHIFT), 0);
    pthread_mutex_lock(&fixture->vm->lock);
    actor_start(&actors[0], fixture, NULL, write_first);
    assert_false(comes_true(&actors[0].is_done, A_WHILE_MS));
    pthread_mutex_unlock(&fixture->vm->lock);
    actor_end(&actors[0]);
    free_vcpus(blocks);
}

static _Atomic unsigned stoppers_inside;
static _Atomic bool was_alone;

/* A vCPU that stops the world over and over, and is as it was each time. */
static void take_turns(struct actor *actor)
{
    bool was_parked = actor->block->parked;
    signals_attach(actor->block);
    actor->block->in_run = true;
    for (unsigned i = 0; i < TURNS; i++) {
        world_stop(actor->fixture->vm, actor->block, COUNT_WORLD_TRANSITION);
        if (atomic_fetch_add(&stoppers_inside, 1) != 0) {
            was_alone = false;
        }
        usleep(10);
        atomic_fetch_sub(&stoppers_inside, 1);
        world_resume(actor->fixture->vm);
        if (actor->block->parked != was_parked) {
            was_alone = false;
        }
    }
    world_park(actor->block);
    actor->block->in_run = false;
    signals_attach(NULL);
}

/* Who waits for a turn is at a safe point, and whose turn it is is alone. */
static void stoppers_take_turns(void **state)
{
    struct fixture *fixture = *state;
    struct block *blocks[VCPUS];
    struct actor actors[VCPUS] = {0};
    make_vcpus(fixture, blocks);
    was_alone = true;
    world_unpark(blocks[0]);
    world_unpark(blocks[1]); /* the others stop the world out of a call of the machine */
    for (unsigned i = 0; i < VCPUS; i++) {
        actor_start(&actors[i], fixture, blocks[i], take_turns);
    }
    for (unsigned i = 0; i < VCPUS; i++) {
        actor_end(&actors[i]);
    }
    assert_true(was_alone);
    free_vcpus(blocks);
}

static bool is_mapped(struct block *block, gva_t gva)
{
    const struct tlb *tlb = block->vcpu.tlb;
    return tlb->entries[TLB_KERNEL][TLB_READ][tlb_index(gva)].tag == gva;
}

static void drops_reach_every_vcpu(struct fixture *fixture, unsigned count)
{
    struct block *blocks[VCPUS];
    static struct actor actors[PAGE_COUNT];
    make_vcpus(fixture, blocks);
    for (unsigned i = 0; i < VCPUS * count; i++) {
        struct vcpu *vcpu = &blocks[i % VCPUS]->vcpu;
        assert_int_equal(tlb_fill(vcpu, PAGES + (i / VCPUS) * PAGE_SIZE, 0), TLB_FILLED);
    }
    world_unpark(blocks[0]);
    for (unsigned i = 0; i < count; i++) {
        actors[i].page = PAGES + i * PAGE_SIZE;
        actor_start(&actors[i], fixture, NULL, write_first);
    }
    unsigned told = 0;
    for (unsigned i = 0; i < LONG_MS && told < count; i++) {
        usleep(1000);
        pthread_mutex_lock(&fixture->vm->world_lock);
        told = fixture->vm->drop_count + (fixture->vm->drop_everything ? PAGE_COUNT : 0);
        pthread_mutex_unlock(&fixture->vm->world_lock);
    }
    usleep(1000 * A_WHILE_MS);
    for (unsigned i = 0; i < count; i++) {
        assert_false(actors[i].is_done); /* blocks[0] may be using its mapping */
        assert_true(is_mapped(blocks[0], PAGES + i * PAGE_SIZE));
    }
    world_park(blocks[0]);
    for (unsigned i = 0; i < count; i++) {
        actor_end(&actors[i]);
        assert_true(actors[i].is_stopped);
        for (unsigned b = 0; b < VCPUS; b++) {
            assert_false(is_mapped(blocks[b], PAGES + i * PAGE_SIZE));
        }
    }
    assert_int_equal(fixture->vm->drop_count, 0);
    assert_false(fixture->vm->drop_everything);
    free_vcpus(blocks);
}

static void few_drops(void **state)
{
    drops_reach_every_vcpu(*state, 3);
}

static void many_drops(void **state)
{
    drops_reach_every_vcpu(*state, PAGE_COUNT);
}

/* A listener of its own vCPU's stores: it does not wait for itself. */
static void write_as_vcpu(struct actor *actor)
{
    signals_attach(actor->block);
    actor->block->in_run = true;
    write_first(actor);
    actor->is_stopped = actor->is_stopped && !actor->block->parked;
    world_park(actor->block);
    actor->block->in_run = false;
    signals_attach(NULL);
}

static void a_vcpu_does_not_wait_for_itself(void **state)
{
    struct fixture *fixture = *state;
    struct block *blocks[VCPUS];
    struct actor actor = {.page = PAGES};
    make_vcpus(fixture, blocks);
    assert_int_equal(tlb_fill(&blocks[1]->vcpu, PAGES, 0), TLB_FILLED);
    world_unpark(blocks[0]);
    actor_start(&actor, fixture, blocks[0], write_as_vcpu);
    actor_end(&actor);
    assert_true(actor.is_stopped);
    assert_false(is_mapped(blocks[1], PAGES));
    free_vcpus(blocks);
}

/* Told of a drop while others are carried out: none is lost. */
static void drop_over_and_over(struct actor *actor)
{
    actor->is_stopped = true;
    for (unsigned i = 0; i < TURNS && actor->is_stopped; i++) {
        if (memory_discard(actor->fixture->memory, actor->page, PAGE_SIZE) ||
            tlb_fill(&actor->block->vcpu, actor->page, 0) != TLB_FILLED ||
            memory_write(actor->fixture->memory, actor->page, "x", 1) ||
            is_mapped(actor->block, actor->page)) {
            actor->is_stopped = false;
        }
    }
}

static void no_drop_is_lost(void **state)
{
    struct fixture *fixture = *state;
    struct block *blocks[VCPUS];
    struct actor actors[VCPUS] = {0};
    make_vcpus(fixture, blocks);
    for (unsigned i = 0; i < VCPUS; i++) {
        actors[i].page = PAGES + i * PAGE_SIZE;
        actor_start(&actors[i], fixture, blocks[i], drop_over_and_over);
    }
    for (unsigned i = 0; i < VCPUS; i++) {
        actor_end(&actors[i]);
        assert_true(actors[i].is_stopped);
    }
    free_vcpus(blocks);
}

/* Stores to code are news for every vCPU, and stores beside it are not. */
static void changed_code_is_news_for_all(void **state)
{
    struct fixture *fixture = *state;
    struct block *blocks[VCPUS];
    make_vcpus(fixture, blocks);
    put(fixture, CODE, "\xb8\x01\0\0\0\xf4", 6); /* mov eax, 1; hlt */
    assert_int_equal(translate_engine.run((struct engine_vcpu *)blocks[0]), EXIT_HALT);
    for (unsigned i = 0; i < VCPUS; i++) {
        blocks[i]->poll_now = 0;
        blocks[i]->vcpu.kicks = 0;
    }
    put(fixture, CODE + 256, "x", 1); /* the same page, another line */
    put(fixture, PAGES, "x", 1);
    for (unsigned i = 0; i < VCPUS; i++) {
        assert_int_equal(blocks[i]->vcpu.kicks & KICK_CODE, 0);
    }
    put(fixture, CODE + 1, "\x02", 1);
    for (unsigned i = 0; i < VCPUS; i++) {
        assert_int_equal(blocks[i]->vcpu.kicks & KICK_CODE, KICK_CODE);
        assert_int_equal(blocks[i]->poll_now, 1);
    }
    struct cpu_state found;
    test_guest_state(&found, CODE);
    translate_engine.set_state((struct engine_vcpu *)blocks[0], &found);
    assert_int_equal(translate_engine.run((struct engine_vcpu *)blocks[0]), EXIT_HALT);
    translate_engine.get_state((struct engine_vcpu *)blocks[0], &found);
    assert_int_equal(found.gpr[RAX], 2);
    free_vcpus(blocks);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(who_stops_waits_for_all_and_is_woken),
        TEST(everybody_takes_the_lock),
        TEST(stoppers_take_turns),
        TEST(few_drops),
        TEST(many_drops),
        TEST(a_vcpu_does_not_wait_for_itself),
        TEST(no_drop_is_lost),
        TEST(changed_code_is_news_for_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
