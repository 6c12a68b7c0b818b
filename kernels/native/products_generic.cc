#include "vector_generic.h"

#include "product_kernels.h"

namespace jcompress {

const Products* generic_products() {
  static constexpr Products kProducts = products_for<Generic>();
  return &kProducts;
}

}  // namespace jcompress
