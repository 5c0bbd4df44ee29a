# Sources of the decode-step attention: one file for each instruction set, compiled with its flags alone.
target_sources(_C PRIVATE cpu/binding_attention.cpp cpu/attention.cpp cpu/attention_generic.cpp)
set_source_files_properties(cpu/attention_generic.cpp cpu/attention.cpp PROPERTIES COMPILE_OPTIONS "${QCOMPILE_KERNEL_FLAGS}")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  function(qcompile_attention name)
    target_sources(_C PRIVATE cpu/attention_${name}.cpp)
    set_source_files_properties(cpu/attention_${name}.cpp PROPERTIES COMPILE_OPTIONS "${QCOMPILE_KERNEL_FLAGS};${ARGN}")
  endfunction()
  qcompile_attention(avx2 ${QCOMPILE_AVX2})
  qcompile_attention(avx512 ${QCOMPILE_AVX512})
  qcompile_attention(avx512_bf16 ${QCOMPILE_AVX512} -mavx512bf16)
endif()
