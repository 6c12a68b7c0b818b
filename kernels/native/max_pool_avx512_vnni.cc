#include "max_pool_kernels.h"

namespace jcompress {

const PoolKernels& avx512_vnni_pool() { return kPool; }

}  // namespace jcompress
