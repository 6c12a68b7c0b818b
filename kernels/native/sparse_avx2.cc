#include "sparse_products.h"

namespace jcompress {

const SparseProducts* avx2_sparse_products() { return &kSparseProducts; }

}  // namespace jcompress
