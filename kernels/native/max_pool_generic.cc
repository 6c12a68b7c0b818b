#include "max_pool_kernels.h"

namespace jcompress {

const PoolKernels& generic_pool() { return kPool; }

}  // namespace jcompress
