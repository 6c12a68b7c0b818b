// The instruction sets that the kernels are compiled for, and the choice among them.
#pragma once

#include <cstdint>

#define JCOMPRESS_EXPORT __attribute__((visibility("default")))

namespace jcompress {

// In increasing order of preference on one kind of processor.
enum class Instructions : int32_t {
  kGeneric = 0,
  kAvx2 = 1,
  kAvxVnni = 2,
  kAvx512Vnni = 3,
  kAvx512Vbmi = 4,
  kAmxInt8 = 5,
  kNeon = 16,
};

// The best set that this processor and this build have; JCOMPRESS_INSTRUCTIONS, a name
// as below, can only lower it. Decided once.
Instructions chosen_instructions();

// Whether this processor and this build have the set.
bool has_instructions(Instructions set);

// The set whose vectors a set has, for kernels that use no more of it.
Instructions vectors_of(Instructions set);

const char* instructions_name(Instructions set);

}  // namespace jcompress
