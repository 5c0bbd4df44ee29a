# Sources of the CPU kernels. A file that may use an instruction set beyond the baseline is compiled with its flags alone, and
# is only entered after isa.cpp has found that set.
target_sources(_C PRIVATE
  common/isa.cpp common/memory.cpp common/threads.cpp
  cpu/binding_digest.cpp cpu/binding_isa.cpp cpu/binding_linear.cpp cpu/binding_pack.cpp
  cpu/digest.cpp cpu/digest_generic.cpp cpu/level_generic.cpp cpu/linear.cpp cpu/packed.cpp)

# Products and sums may be contracted to fused ones (CMAKE_CXX_EXTENSIONS OFF turns that off), and GCC 12 warns about its own
# intrinsics headers.
set(QCOMPILE_KERNEL_FLAGS -O3 -ffp-contract=fast)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND QCOMPILE_KERNEL_FLAGS -Wno-maybe-uninitialized -Wno-uninitialized)
endif()
set_source_files_properties(cpu/digest_generic.cpp cpu/level_generic.cpp cpu/packed.cpp PROPERTIES COMPILE_OPTIONS "${QCOMPILE_KERNEL_FLAGS}")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(QCOMPILE_AVX2 -mavx2 -mfma -mf16c)
  set(QCOMPILE_AVX512 ${QCOMPILE_AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  function(qcompile_isa name)
    target_sources(_C PRIVATE cpu/${name}.cpp)
    set_source_files_properties(cpu/${name}.cpp PROPERTIES COMPILE_OPTIONS "${QCOMPILE_KERNEL_FLAGS};${ARGN}")
  endfunction()
  function(qcompile_level name)
    qcompile_isa(level_${name} ${ARGN})
  endfunction()
  qcompile_isa(digest_avx2 ${QCOMPILE_AVX2})
  qcompile_isa(digest_avx512 ${QCOMPILE_AVX512})
  qcompile_level(avx2 ${QCOMPILE_AVX2})
  qcompile_level(avx2_vnni ${QCOMPILE_AVX2} -mavxvnni)
  qcompile_level(avx2_vnni_evex ${QCOMPILE_AVX2} -mavx512f -mavx512vl -mavx512vnni -mprefer-vector-width=256)
  qcompile_level(avx512 ${QCOMPILE_AVX512})
  qcompile_level(avx512_vnni ${QCOMPILE_AVX512} -mavx512vnni)
  qcompile_level(avx512_bf16 ${QCOMPILE_AVX512} -mavx512bf16)
endif()
