/*
 * What kind of instruction one is for the compiler: copied, made by hand, nothing at all, or (what
 * is none of these) left to interp. Facts of the instruction alone.
 */
#include "engine/translate/compiler.h"

bool is_end(const struct insn *insn)
{
    switch (insn->info.meta.category) {
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_INTERRUPT:
        return true;
    default:
        break;
    }
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
        return true;
    default:
        return false;
    }
}

bool is_conditional_jump(const struct insn *insn)
{
    bool is_short = insn->info.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT;
    return insn->info.meta.category == ZYDIS_CATEGORY_COND_BR && insn->info.operand_width == 64 &&
           (insn->info.opcode & 0xf0) == (is_short ? 0x70 : 0x80);
}

bool is_general(const struct insn *insn)
{
    return !interp_uses_vector_state(insn);
}

/* Copied by mnemonic, from categories that are not copied as a whole. */
static bool is_copied_alone(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
    case ZYDIS_MNEMONIC_CLC:
    case ZYDIS_MNEMONIC_STC:
    case ZYDIS_MNEMONIC_CMC:
    case ZYDIS_MNEMONIC_LAHF:
    case ZYDIS_MNEMONIC_SAHF:
        return true;
    default:
        return false;
    }
}

/* Left to interp, from categories that are copied: they show host addresses, or fault by element.
 */
static bool is_never_copied(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
        return true;
    default:
        return false;
    }
}

bool moves_x87_pointer(const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_FNINIT:
    case ZYDIS_MNEMONIC_FNCLEX:
    case ZYDIS_MNEMONIC_FLDCW:
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FWAIT:
        return false;
    default:
        return insn->info.meta.isa_ext == ZYDIS_ISA_EXT_X87;
    }
}

bool is_copied(const struct insn *insn)
{
    switch (insn->info.meta.category) {
    case ZYDIS_CATEGORY_BINARY:
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_DATAXFER:
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_SETCC:
    case ZYDIS_CATEGORY_BITBYTE:
    case ZYDIS_CATEGORY_CONVERT:
    case ZYDIS_CATEGORY_SEMAPHORE:
    case ZYDIS_CATEGORY_BMI1:
    case ZYDIS_CATEGORY_BMI2:
    case ZYDIS_CATEGORY_LZCNT:
    case ZYDIS_CATEGORY_ADOX_ADCX:
    case ZYDIS_CATEGORY_X87_ALU:
    case ZYDIS_CATEGORY_FCMOV:
    case ZYDIS_CATEGORY_MMX:
    case ZYDIS_CATEGORY_SSE:
    case ZYDIS_CATEGORY_STTNI:
    case ZYDIS_CATEGORY_LOGICAL_FP:
    case ZYDIS_CATEGORY_AES:
    case ZYDIS_CATEGORY_PCLMULQDQ:
    case ZYDIS_CATEGORY_SHA:
    case ZYDIS_CATEGORY_GFNI:
    case ZYDIS_CATEGORY_AVX:
    case ZYDIS_CATEGORY_AVX2:
    case ZYDIS_CATEGORY_AVX512:
    case ZYDIS_CATEGORY_AVX512_BITALG:
    case ZYDIS_CATEGORY_AVX512_VBMI:
    case ZYDIS_CATEGORY_VBMI2:
    case ZYDIS_CATEGORY_IFMA:
    case ZYDIS_CATEGORY_FP16:
    case ZYDIS_CATEGORY_KMASK:
    case ZYDIS_CATEGORY_BLEND:
    case ZYDIS_CATEGORY_BROADCAST:
    case ZYDIS_CATEGORY_COMPRESS:
    case ZYDIS_CATEGORY_EXPAND:
    case ZYDIS_CATEGORY_CONFLICT:
    case ZYDIS_CATEGORY_VFMA:
    case ZYDIS_CATEGORY_VAES:
    case ZYDIS_CATEGORY_VPCLMULQDQ:
    case ZYDIS_CATEGORY_VEX:
        break;
    default:
        return is_copied_alone(insn->info.mnemonic);
    }
    for (unsigned i = 0; i < insn->info.operand_count_visible; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        /* Segment, test, control and debug registers. */
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            operand->reg.value >= ZYDIS_REGISTER_ES && operand->reg.value <= ZYDIS_REGISTER_DR15) {
            return false;
        }
    }
    return !is_never_copied(insn->info.mnemonic);
}

bool is_nothing(const struct insn *insn)
{
    if (insn->info.mnemonic == ZYDIS_MNEMONIC_PAUSE) {
        return false;
    }
    switch (insn->info.meta.category) {
    case ZYDIS_CATEGORY_NOP:
    case ZYDIS_CATEGORY_WIDENOP:
    case ZYDIS_CATEGORY_PREFETCH:
        return true;
    default:
        return false;
    }
}

bool is_by_mnemonic(const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_LEAVE:
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_RET:
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_PAUSE:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR64:
        return true;
    default:
        return false;
    }
}

bool is_transparent(const struct insn *insn)
{
    return is_nothing(insn) || is_copied(insn) || insn->info.mnemonic == ZYDIS_MNEMONIC_LEA ||
           insn->info.meta.category == ZYDIS_CATEGORY_COND_BR;
}
