#include "attention_kernels.h"

namespace jcompress {

const AttentionKernels* avx512_vnni_attention() { return &kAttention; }

}  // namespace jcompress
