#include "attention_kernels.h"

namespace jcompress {

const AttentionKernels* generic_attention() { return &kAttention; }

}  // namespace jcompress
