#include "sparse_products.h"

namespace jcompress {

const SparseProducts* generic_sparse_products() { return &kSparseProducts; }

}  // namespace jcompress
