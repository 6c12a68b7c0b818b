// What a call's place in a program keeps from call to call: XLA's `State`.
#pragma once

#include <memory>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace jcompress {
namespace {

// A plan, or what is wrong. A plan has an `id` and a `kName`.
template <class Plan>
struct Planned {
  xla::ffi::ErrorOr<std::unique_ptr<Plan>> made;
};

}  // namespace
}  // namespace jcompress

// XLA asks for the type when the handler is registered. JAX tells it of types later.
template <class Plan>
struct xla::ffi::ResultEncoding<xla::ffi::ExecutionStage::kInstantiate,
                                jcompress::Planned<Plan>> {
  using Made = ErrorOr<std::unique_ptr<Plan>>;

  static XLA_FFI_TypeId state_type_id(const XLA_FFI_Api* api) {
    if (Plan::id == XLA_FFI_UNKNOWN_TYPE_ID) {
      const XLA_FFI_TypeInfo info = MakeTypeInfo<Plan>();
      XLA_FFI_Error* error = Ffi::RegisterTypeId(api, Plan::kName, &Plan::id, &info);
      if (error) internal::DestroyError(api, error);
    }
    return Plan::id;
  }

  static XLA_FFI_Error* Encode(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* ctx,
                               jcompress::Planned<Plan> planned) {
    return ResultEncoding<ExecutionStage::kInstantiate, Made>::Encode(
        api, ctx, std::move(planned.made));
  }
};
