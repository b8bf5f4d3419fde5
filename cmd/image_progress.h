/* A build of an image, whose steps are shown on standard error. */
#pragma once

#include "image/build.h"

/* image_build(); `plan->report` is set here. */
int image_build_shown(struct store *store, struct image_plan *plan, json_t **ret_record,
                      bool *ret_is_new) __attribute__((warn_unused_result));
