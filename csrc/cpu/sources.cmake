# Sources of the CPU kernels: those for any processor, and for each level of levels.txt its own, with that level's flags alone.
set(QCOMPILE_FAMILIES level attention dense digest)
target_sources(_C PRIVATE
  common/isa.cpp common/memory.cpp common/threads.cpp
  cpu/attention.cpp cpu/dense.cpp cpu/digest.cpp cpu/linear.cpp cpu/packed.cpp
  cpu/binding_attention.cpp cpu/binding_dense.cpp cpu/binding_digest.cpp cpu/binding_isa.cpp cpu/binding_linear.cpp cpu/binding_pack.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(QCOMPILE_ARCHITECTURE x86_64)
  target_sources(_C PRIVATE common/features_x86_64.cpp)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(QCOMPILE_ARCHITECTURE aarch64)
  target_sources(_C PRIVATE common/features_aarch64.cpp)
else()
  set(QCOMPILE_ARCHITECTURE ${CMAKE_SYSTEM_PROCESSOR})
  target_sources(_C PRIVATE common/features_none.cpp)
endif()

# Products and sums may be contracted to fused ones (CMAKE_CXX_EXTENSIONS OFF turns that off), and GCC 12 warns about its own
# intrinsics headers.
set(QCOMPILE_KERNEL_FLAGS -O3 -ffp-contract=fast)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND QCOMPILE_KERNEL_FLAGS -Wno-maybe-uninitialized -Wno-uninitialized)
endif()
set_source_files_properties(cpu/attention.cpp cpu/dense.cpp cpu/packed.cpp PROPERTIES COMPILE_OPTIONS "${QCOMPILE_KERNEL_FLAGS}")

function(qcompile_level name)
  foreach(family IN LISTS QCOMPILE_FAMILIES)
    if(EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/cpu/${family}_${name}.cpp")
      target_sources(_C PRIVATE cpu/${family}_${name}.cpp)
      set_source_files_properties(cpu/${family}_${name}.cpp PROPERTIES COMPILE_OPTIONS "${QCOMPILE_KERNEL_FLAGS};${ARGN}")
    endif()
  endforeach()
endfunction()

qcompile_level(generic)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/cpu/levels.txt")
file(STRINGS cpu/levels.txt QCOMPILE_LEVELS REGEX "^[^#]")
foreach(line IN LISTS QCOMPILE_LEVELS)
  separate_arguments(words UNIX_COMMAND "${line}")
  list(POP_FRONT words architecture name)
  if(architecture STREQUAL QCOMPILE_ARCHITECTURE)
    qcompile_level(${name} ${words})
  endif()
endforeach()
