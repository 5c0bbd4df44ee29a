// Checks at the torch boundary: every failure names the operator, the argument, what was expected and what came.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace qcompile {

// Plain std::runtime_error: torch shows its text as it is, without the place in our sources that STD_TORCH_CHECK adds.
template <class... Parts>
[[noreturn]] inline void fail(const char* op, const char* argument, const Parts&... parts) {
  std::ostringstream text;
  text << "qcompile::" << op << ": " << argument << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline const char* dtype_name(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Double: return "float64";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    case ScalarType::Float8_e8m0fnu: return "float8_e8m0fnu";
    default: return "another dtype";
  }
}

inline std::string shape_text(const torch::stable::Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d == 0 ? "" : ", ") << tensor.size(d);
  text << ']';
  return text.str();
}

inline void check_cpu(const char* op, const char* argument, const torch::stable::Tensor& tensor) {
  if (!tensor.is_cpu()) fail(op, argument, "expected a tensor on the CPU, got one on another device");
}

inline void check_dtype(const char* op, const char* argument, const torch::stable::Tensor& tensor,
                        std::initializer_list<torch::headeronly::ScalarType> allowed) {
  const auto got = tensor.scalar_type();
  std::string names;
  for (const auto type : allowed) {
    if (type == got) return;
    names += (names.empty() ? "" : " or ") + std::string(dtype_name(type));
  }
  fail(op, argument, "expected ", names, ", got ", dtype_name(got));
}

inline void check_shape(const char* op, const char* argument, const torch::stable::Tensor& tensor,
                        std::initializer_list<int64_t> sizes) {
  bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t d = 0;
  for (const int64_t size : sizes) same = same && tensor.size(d++) == size;
  if (same) return;
  std::ostringstream expected;
  d = 0;
  for (const int64_t size : sizes) expected << (d++ == 0 ? "" : ", ") << size;
  fail(op, argument, "expected shape [", expected.str(), "], got ", shape_text(tensor));
}

inline void check_contiguous(const char* op, const char* argument, const torch::stable::Tensor& tensor) {
  if (!tensor.is_contiguous()) fail(op, argument, "expected a contiguous tensor, got strides that skip; call .contiguous()");
}

}  // namespace qcompile
