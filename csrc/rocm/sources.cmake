# The torch boundary and the model of the RDNA3 kernel are always built, so that the operator exists and can be planned for.
# The device code needs a torch for ROCm and the HIP compiler; it is built for gfx1100 whether or not a GPU is visible.
target_sources(_C PRIVATE rocm/binding_rdna3.cpp rocm/dispatch.cpp)

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import torch; print(torch.version.hip or '')"
  OUTPUT_VARIABLE QCOMPILE_HIP OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(QCOMPILE_HIP)
  if(NOT CMAKE_HIP_ARCHITECTURES)
    set(CMAKE_HIP_ARCHITECTURES gfx1100)
  endif()
  set(CMAKE_HIP_STANDARD 17)
  enable_language(HIP)
  target_sources(_C PRIVATE rocm/gptq_gemm_rdna3.hip)
  set_source_files_properties(rocm/gptq_gemm_rdna3.hip PROPERTIES LANGUAGE HIP)
  # is_cuda and the stream of a device: torch for ROCm uses CUDA's names.
  target_compile_definitions(_C PRIVATE QCOMPILE_ROCM)
endif()
