# Sources of the CPU kernels. A file that may use an instruction set beyond the baseline is compiled with its flags alone, and
# is only entered after isa.cpp has found that set.
target_sources(_C PRIVATE
  common/isa.cpp common/memory.cpp
  cpu/binding_isa.cpp cpu/binding_int4.cpp
  cpu/int4.cpp cpu/int4_pack.cpp cpu/int4_generic.cpp)

# Products and sums may be contracted to fused ones (CMAKE_CXX_EXTENSIONS OFF turns that off), and GCC 12 warns about its own
# intrinsics headers.
set(QCOMPILE_KERNEL_FLAGS -O3 -ffp-contract=fast $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>)
set_source_files_properties(cpu/int4_generic.cpp PROPERTIES COMPILE_OPTIONS "${QCOMPILE_KERNEL_FLAGS}")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(QCOMPILE_AVX2 -mavx2 -mfma -mf16c)
  set(QCOMPILE_AVX512 ${QCOMPILE_AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  set(QCOMPILE_AVX512_BF16 ${QCOMPILE_AVX512} -mavx512vnni -mavx512bf16)
  function(qcompile_isa_sources flags)
    target_sources(_C PRIVATE ${ARGN})
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${QCOMPILE_KERNEL_FLAGS};${flags}")
  endfunction()
  qcompile_isa_sources("${QCOMPILE_AVX2}" cpu/int4_avx2.cpp)
  qcompile_isa_sources("${QCOMPILE_AVX512}" cpu/int4_avx512.cpp)
  qcompile_isa_sources("${QCOMPILE_AVX512_BF16}" cpu/int4_avx512_bf16.cpp)
endif()
