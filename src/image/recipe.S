/*
 * The shell scripts of recipe/ as strings of the program (see recipe.h), so that an image is built
 * by the program alone, wherever it lies.
 */
    .section .rodata

    .macro script name, file
    .globl \name
    .type \name, @object
\name:
    .incbin "\file"
    .byte 0
    .size \name, . - \name
    .endm

    script recipe_prepare, "src/image/recipe/prepare.sh"
    script recipe_customize, "src/image/recipe/customize.sh"
    script recipe_fill, "src/image/recipe/fill.sh"
    script recipe_install, "src/image/recipe/install.sh"

    .section .note.GNU-stack, "", @progbits
