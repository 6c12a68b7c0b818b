#include "normalize_kernels.h"

namespace jcompress {

NormalizeRows generic_normalize() { return &normalize_rows<WideFloats>; }

}  // namespace jcompress
