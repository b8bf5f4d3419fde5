/*
 * Packing and unpacking of segment descriptors and gates. See descriptor.h.
 */
#include "x86/descriptor.h"

struct segment descriptor_unpack(uint64_t descriptor, uint16_t selector)
{
    uint32_t limit = (descriptor & 0xffff) | ((descriptor >> 32) & 0xf0000);
    struct segment segment = {
        .base = ((descriptor >> 16) & 0xffffff) | ((descriptor >> 32) & 0xff000000),
        .selector = selector,
        .attributes = descriptor_attributes(descriptor),
    };
    segment.limit = segment.attributes & SEGMENT_G ? limit << 12 | 0xfff : limit;
    return segment;
}

bool descriptor_unpack_system64(uint64_t low, uint64_t high, uint16_t selector,
                                struct segment *ret_segment)
{
    *ret_segment = descriptor_unpack(low, selector);
    ret_segment->base |= high << 32;
    return (high >> 40 & 0x1f) == 0;
}

uint64_t descriptor_pack(const struct segment *segment)
{
    uint64_t base = segment->base & 0xffffffff;
    uint64_t limit = segment->attributes & SEGMENT_G ? segment->limit >> 12 : segment->limit;
    uint64_t attributes = segment->attributes & 0xf0ff;
    return (limit & 0xffff) | (limit & 0xf0000) << 32 | (base & 0xffffff) << 16 |
           (base & 0xff000000) << 32 | attributes << 40;
}

struct segment segment_real(uint16_t selector, bool is_v86)
{
    /* Accessed, writable data; virtual-8086 mode runs at privilege level 3. */
    uint16_t attributes = SEGMENT_P | SEGMENT_S | SEGMENT_WRITABLE | SEGMENT_ACCESSED;
    return (struct segment){
        .base = (uint64_t)selector << 4,
        .limit = 0xffff,
        .selector = selector,
        .attributes = is_v86 ? attributes | SEGMENT_DPL : attributes,
    };
}

struct segment segment_null(uint16_t selector, unsigned dpl)
{
    return (struct segment){
        .selector = selector,
        .attributes = SEGMENT_UNUSABLE | dpl << SEGMENT_DPL_SHIFT,
    };
}

struct segment segment_flat(uint16_t selector, bool is_code, bool is_64bit, unsigned dpl)
{
    uint16_t attributes = SEGMENT_P | SEGMENT_S | SEGMENT_WRITABLE | SEGMENT_ACCESSED | SEGMENT_G |
                          dpl << SEGMENT_DPL_SHIFT;
    if (is_code) {
        attributes |= SEGMENT_CODE;
    }
    attributes |= is_code && is_64bit ? SEGMENT_L : SEGMENT_DB;
    return (struct segment){
        .limit = 0xffffffff,
        .selector = selector,
        .attributes = attributes,
    };
}

struct gate gate_unpack(uint64_t descriptor)
{
    uint16_t attributes = descriptor_attributes(descriptor);
    struct gate gate = {
        .offset = descriptor & 0xffff,
        .selector = descriptor >> 16,
        .type = attributes & SEGMENT_TYPE,
        .dpl = (attributes & SEGMENT_DPL) >> SEGMENT_DPL_SHIFT,
        .parameters = descriptor >> 32 & 0x1f,
        .system = !(attributes & SEGMENT_S),
        .present = attributes & SEGMENT_P,
    };
    /* Bit 3 of the type tells 32-bit gates from 16-bit ones, whose upper word is unused. */
    if (gate.type & 8) {
        gate.offset |= descriptor >> 32 & 0xffff0000;
    }
    return gate;
}

bool gate_unpack64(uint64_t low, uint64_t high, struct gate *ret_gate)
{
    *ret_gate = gate_unpack(low);
    ret_gate->offset = (low & 0xffff) | (low >> 32 & 0xffff0000) | high << 32;
    ret_gate->parameters = 0;
    ret_gate->ist = low >> 32 & 7;
    return (high >> 40 & 0x1f) == 0;
}
