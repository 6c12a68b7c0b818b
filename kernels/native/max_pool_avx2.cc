#include "max_pool_kernels.h"

namespace jcompress {

const PoolKernels& avx2_pool() { return kPool; }

}  // namespace jcompress
