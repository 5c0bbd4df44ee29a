// The element type of a torch tensor, for the operators that read tensors as they are.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "cpu/element.h"

namespace qcompile {

// Of a dtype that has been checked.
inline Element element_of(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  return type == ScalarType::Float  ? Element::f32
         : type == ScalarType::Half ? Element::fp16
         : type == ScalarType::Bool ? Element::boolean
                                    : Element::bf16;
}

}  // namespace qcompile
