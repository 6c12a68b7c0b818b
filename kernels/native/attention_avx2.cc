#include "attention_kernels.h"

namespace jcompress {

const AttentionKernels* avx2_attention() { return &kAttention; }

}  // namespace jcompress
