#include "vector_neon.h"

#include "product_kernels.h"

namespace jcompress {

const Products* neon_products() {
  static constexpr Products kProducts = products_for<Neon>();
  return &kProducts;
}

}  // namespace jcompress
