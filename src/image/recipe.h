/* The shell scripts that make a disk of packages: recipe/prepare.sh and its neighbours. */
#pragma once

extern const char recipe_prepare[], recipe_customize[], recipe_fill[], recipe_install[];
