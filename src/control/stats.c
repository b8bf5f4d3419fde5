/* Putting the facts together: see stats.h. */
#include "control/stats.h"

#include "machine/stats.h"
#include "machine/vm.h"

struct builder {
    json_t *vcpus, *total, *regions;
};

static json_t *topic_of(json_t *object, const char *topic)
{
    json_t *found = json_object_get(object, topic);
    if (!found) {
        found = json_object();
        json_object_set_new(object, topic, found);
    }
    return found;
}

static void add(json_t *object, const char *topic, const char *key, uint64_t value)
{
    json_t *facts = topic_of(object, topic);
    json_int_t before = json_integer_value(json_object_get(facts, key));
    json_object_set_new(facts, key, json_integer(before + (json_int_t)value));
}

static void add_number(void *owner, int vcpu, const char *topic, const char *key, uint64_t value)
{
    struct builder *builder = owner;
    if (vcpu >= 0) {
        while (json_array_size(builder->vcpus) <= (size_t)vcpu) {
            json_array_append_new(builder->vcpus, json_object());
        }
        add(json_array_get(builder->vcpus, (size_t)vcpu), topic, key, value);
    }
    add(builder->total, topic, key, value);
}

static void add_slow(void *owner, int vcpu, const char *form, uint64_t count)
{
    add_number(owner, vcpu, "slow_instructions", form, count);
}

static void add_region(void *owner, const char *name, bool is_port, uint64_t base, uint64_t reads,
                       uint64_t writes)
{
    struct builder *builder = owner;
    json_array_append_new(builder->regions,
                          json_pack("{s:s, s:s, s:I, s:I, s:I}", "name", name, "kind",
                                    is_port ? "port" : "mmio", "base", (json_int_t)base, "reads",
                                    (json_int_t)reads, "writes", (json_int_t)writes));
}

json_t *stats_json(struct vm *vm)
{
    struct builder builder = {json_array(), json_object(), json_array()};
    const struct vm_stats_sink sink = {
        .number = add_number, .slow = add_slow, .region = add_region, .owner = &builder};
    vm_stats(vm, &sink);
    topic_of(builder.total, "slow_instructions");
    return json_pack("{s:s, s:s, s:o, s:o, s:o}", "name", vm_name(vm), "engine", vm_engine_name(vm),
                     "vcpus", builder.vcpus, "total", builder.total, "regions", builder.regions);
}
