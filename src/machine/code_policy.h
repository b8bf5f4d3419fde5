/*
 * How translate is told what it may do to be fast, as text: for the command line and for tests.
 */
#pragma once

#include "engine/engine.h"

/*
 * One key of it: hot=sampled|all|none, without=NAME+NAME..., random=SEED. -EINVAL with a sentence
 * that names what would be right, and the policy as it was; -ENOENT if there is no such key.
 */
int code_policy_set(struct code_policy *policy, const char *key, const char *value)
    __attribute__((warn_unused_result));
/* The same for "KEY=VALUE,KEY=VALUE...". */
int code_policy_parse(struct code_policy *policy, const char *text)
    __attribute__((warn_unused_result));
