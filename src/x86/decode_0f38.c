/*
 * The three-byte opcodes, 0FH 38H and 0FH 3AH: SDM volume 2, tables.
 */
#include "x86/decode_rows.h"

/* Splits, each of as many rows as its kind has cases. */
enum {
    MOD_66_3A_14,
    MOD_66_3A_15 = MOD_66_3A_14 + 2,
    SIZE_66_3A_16 = MOD_66_3A_15 + 2,
    MOD_66_3A_20 = SIZE_66_3A_16 + 3,
    MOD_66_3A_21 = MOD_66_3A_20 + 2,
    SIZE_66_3A_22 = MOD_66_3A_21 + 2,
};

/* clang-format off */
static const struct row splits[] = {
    [MOD_66_3A_14] =
        ROW(PEXTRB, SSE, SSE4, NONE, v, 0, M(b, w), V(x, r), IU(b)),
        ROW(PEXTRB, SSE, SSE4, NONE, v, 0, R(d, w), V(x, r), IU(b)),
    [MOD_66_3A_15] =
        ROW(PEXTRW, SSE, SSE4, NONE, v, 0, M(w, w), V(x, r), IU(b)),
        ROW(PEXTRW, SSE, SSE4, NONE, v, 0, R(d, w), V(x, r), IU(b)),
    [SIZE_66_3A_16] =
        ABSENT,
        ROW(PEXTRD, SSE, SSE4, NONE, d, 0, E(d, w), V(x, r), IU(b)),
        ROW(PEXTRQ, SSE, SSE4, NONE, q, 0, E(q, w), V(x, r), IU(b)),
    [MOD_66_3A_20] =
        ROW(PINSRB, SSE, SSE4, NONE, v, 0, V(x, rw), M(b, r), IU(b)),
        ROW(PINSRB, SSE, SSE4, NONE, v, 0, V(x, rw), R(d, r), IU(b)),
    [MOD_66_3A_21] =
        ROW(INSERTPS, SSE, SSE4, NONE, v, 0, V(x, rw), M(d, r), IU(b)),
        ROW(INSERTPS, SSE, SSE4, NONE, v, 0, V(x, rw), U(x, r), IU(b)),
    [SIZE_66_3A_22] =
        ABSENT,
        ROW(PINSRD, SSE, SSE4, NONE, d, 0, V(x, rw), E(d, r), IU(b)),
        ROW(PINSRQ, SSE, SSE4, NONE, q, 0, V(x, rw), E(q, r), IU(b)),
};

static const struct row map_38[256] = {
    [0x00] = ROW(PSHUFB, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x01] = ROW(PHADDW, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x02] = ROW(PHADDD, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x03] = ROW(PHADDSW, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x04] = ROW(PMADDUBSW, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x05] = ROW(PHSUBW, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x06] = ROW(PHSUBD, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x07] = ROW(PHSUBSW, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x08] = ROW(PSIGNB, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x09] = ROW(PSIGNW, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x0a] = ROW(PSIGND, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x0b] = ROW(PMULHRSW, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r)),
    [0x1c] = ROW(PABSB, MMX, SSSE3MMX, NONE, v, NO_66, P(q, w), Q(q, r)),
    [0x1d] = ROW(PABSW, MMX, SSSE3MMX, NONE, v, NO_66, P(q, w), Q(q, r)),
    [0x1e] = ROW(PABSD, MMX, SSSE3MMX, NONE, v, NO_66, P(q, w), Q(q, r)),
    [0xf0] = ROW(MOVBE, DATAXFER, MOVBE, NONE, v, 0, G(v, w), M(v, r)),
    [0xf1] = ROW(MOVBE, DATAXFER, MOVBE, NONE, v, 0, M(v, w), G(v, r)),
};

static const struct row map_38_66[256] = {
    [0x00] = ROW(PSHUFB, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x01] = ROW(PHADDW, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x02] = ROW(PHADDD, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x03] = ROW(PHADDSW, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x04] = ROW(PMADDUBSW, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x05] = ROW(PHSUBW, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x06] = ROW(PHSUBD, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x07] = ROW(PHSUBSW, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x08] = ROW(PSIGNB, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x09] = ROW(PSIGNW, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x0a] = ROW(PSIGND, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x0b] = ROW(PMULHRSW, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r)),
    [0x17] = ROW(PTEST, LOGICAL, SSE4, PTEST, v, 0, V(x, r), W(x, r)),
    [0x1c] = ROW(PABSB, SSE, SSSE3, NONE, v, 0, V(x, w), W(x, r)),
    [0x1d] = ROW(PABSW, SSE, SSSE3, NONE, v, 0, V(x, w), W(x, r)),
    [0x1e] = ROW(PABSD, SSE, SSSE3, NONE, v, 0, V(x, w), W(x, r)),
    [0x20] = ROW(PMOVSXBW, SSE, SSE4, NONE, v, 0, V(x, w), W(q, r)),
    [0x21] = ROW(PMOVSXBD, SSE, SSE4, NONE, v, 0, V(x, w), W(d, r)),
    [0x22] = ROW(PMOVSXBQ, SSE, SSE4, NONE, v, 0, V(x, w), W(w, r)),
    [0x23] = ROW(PMOVSXWD, SSE, SSE4, NONE, v, 0, V(x, w), W(q, r)),
    [0x24] = ROW(PMOVSXWQ, SSE, SSE4, NONE, v, 0, V(x, w), W(d, r)),
    [0x25] = ROW(PMOVSXDQ, SSE, SSE4, NONE, v, 0, V(x, w), W(q, r)),
    [0x28] = ROW(PMULDQ, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x29] = ROW(PCMPEQQ, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x2a] = ROW(MOVNTDQA, SSE, SSE4, NONE, v, 0, V(x, w), M(x, r)),
    [0x2b] = ROW(PACKUSDW, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x30] = ROW(PMOVZXBW, SSE, SSE4, NONE, v, 0, V(x, w), W(q, r)),
    [0x31] = ROW(PMOVZXBD, SSE, SSE4, NONE, v, 0, V(x, w), W(d, r)),
    [0x32] = ROW(PMOVZXBQ, SSE, SSE4, NONE, v, 0, V(x, w), W(w, r)),
    [0x33] = ROW(PMOVZXWD, SSE, SSE4, NONE, v, 0, V(x, w), W(q, r)),
    [0x34] = ROW(PMOVZXWQ, SSE, SSE4, NONE, v, 0, V(x, w), W(d, r)),
    [0x35] = ROW(PMOVZXDQ, SSE, SSE4, NONE, v, 0, V(x, w), W(q, r)),
    [0x37] = ROW(PCMPGTQ, SSE, SSE42, NONE, v, 0, V(x, rw), W(x, r)),
    [0x38] = ROW(PMINSB, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x39] = ROW(PMINSD, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x3a] = ROW(PMINUW, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x3b] = ROW(PMINUD, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x3c] = ROW(PMAXSB, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x3d] = ROW(PMAXSD, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x3e] = ROW(PMAXUW, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x3f] = ROW(PMAXUD, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x40] = ROW(PMULLD, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r)),
    [0x41] = ROW(PHMINPOSUW, SSE, SSE4, NONE, v, 0, V(x, w), W(x, r)),
};

static const struct row map_38_f2[256] = {
    [0xf0] = ROW(CRC32, SSE, SSE42, NONE, v, 0, G(v, rw), E(b, r)),
    [0xf1] = ROW(CRC32, SSE, SSE42, NONE, v, 0, G(v, rw), E(v, r)),
};

static const struct row map_3a[256] = {
    [0x0f] = ROW(PALIGNR, MMX, SSSE3MMX, NONE, v, NO_66, P(q, rw), Q(q, r), IU(b)),
};

static const struct row map_3a_66[256] = {
    [0x08] = ROW(ROUNDPS, SSE, SSE4, NONE, v, 0, V(x, w), W(x, r), IU(b)),
    [0x09] = ROW(ROUNDPD, SSE, SSE4, NONE, v, 0, V(x, w), W(x, r), IU(b)),
    [0x0a] = ROW(ROUNDSS, SSE, SSE4, NONE, v, 0, V(d, w), W(d, r), IU(b)),
    [0x0b] = ROW(ROUNDSD, SSE, SSE4, NONE, v, 0, V(q, w), W(q, r), IU(b)),
    [0x0c] = ROW(BLENDPS, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r), IU(b)),
    [0x0d] = ROW(BLENDPD, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r), IU(b)),
    [0x0e] = ROW(PBLENDW, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r), IU(b)),
    [0x0f] = ROW(PALIGNR, SSE, SSSE3, NONE, v, 0, V(x, rw), W(x, r), IU(b)),
    [0x14] = BY_MOD(MOD_66_3A_14),
    [0x15] = BY_MOD(MOD_66_3A_15),
    [0x16] = BY_SIZE(SIZE_66_3A_16),
    [0x17] = ROW(EXTRACTPS, SSE, SSE4, NONE, v, 0, E(d, w), V(x, r), IU(b)),
    [0x20] = BY_MOD(MOD_66_3A_20),
    [0x21] = BY_MOD(MOD_66_3A_21),
    [0x22] = BY_SIZE(SIZE_66_3A_22),
    [0x40] = ROW(DPPS, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r), IU(b)),
    [0x41] = ROW(DPPD, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r), IU(b)),
    [0x42] = ROW(MPSADBW, SSE, SSE4, NONE, v, 0, V(x, rw), W(x, r), IU(b)),
};
/* clang-format on */

const struct opcode_map opcodes_0f38 = {
    .columns[COLUMN_NONE] = map_38,
    .columns[COLUMN_66] = map_38_66,
    .columns[COLUMN_F2] = map_38_f2,
    .splits = splits,
};

const struct opcode_map opcodes_0f3a = {
    .columns[COLUMN_NONE] = map_3a,
    .columns[COLUMN_66] = map_3a_66,
    .splits = splits,
};
