// The element types of tensors that are read as they are.
#pragma once

#include <cstdint>

namespace qcompile {

enum class Element : int { bf16 = 0, fp16 = 1, f32 = 2, boolean = 3 };

constexpr int64_t element_bytes(Element element) { return element == Element::f32 ? 4 : element == Element::boolean ? 1 : 2; }

}  // namespace qcompile
