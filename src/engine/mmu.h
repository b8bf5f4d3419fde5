/*
 * Guest-virtual memory access from C: what interp and event delivery use. All destinations are
 * checked before the first byte becomes visible. Segment checks are the caller's.
 * General registers only. `access` is 0 or PF_USER (implicit supervisor accesses pass 0).
 */
#pragma once

#include "engine/vcpu.h"

/* Size 1 to PAGE_SIZE, may cross one page. STEP_NEXT, or STEP_EXCEPTION with nothing done. */
enum step mmu_read(struct vcpu *vcpu, gva_t gva, void *buffer, unsigned size, uint32_t access);
enum step mmu_write(struct vcpu *vcpu, gva_t gva, const void *buffer, unsigned size,
                    uint32_t access);
/* Would a write of this size succeed? Used before instructions with several effects. */
enum step mmu_check_write(struct vcpu *vcpu, gva_t gva, unsigned size, uint32_t access);
/*
 * The host address of an access inside one page, or NULL with STEP_NEXT if the bytes are not plain
 * RAM (watched, a device, across pages) though the access is allowed. `access` may contain
 * PF_WRITE. The address may be used until the next call into mmu or memory.
 */
enum step mmu_host(struct vcpu *vcpu, gva_t gva, unsigned size, uint32_t access,
                   uint8_t **ret_host);
/*
 * The bytes at the linear address `rip` for decoding: up to 15 into `buffer`. Fewer are returned
 * only if the page behind faults; `ret_count` says how many, and vcpu->exception then holds that
 * fault.
 */
enum step mmu_fetch(struct vcpu *vcpu, gva_t rip, uint8_t *buffer, unsigned *ret_count);
/* Where an executable byte is, as the fetch unit sees it. */
enum step mmu_translate_fetch(struct vcpu *vcpu, gva_t rip, struct walk_result *ret_result);
