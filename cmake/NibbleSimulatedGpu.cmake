# The simulated GPU of tests/simulated_gpu: the rooms' .cu files as C++, with its headers in place of CUDA's, and
# its own forms of the files that call libraries of NVIDIA or build graphs.
find_package(Boost REQUIRED COMPONENTS context)
set(simulated_gpu ${PROJECT_SOURCE_DIR}/tests/simulated_gpu)

function(nibble_simulated_sources room result)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${room}/*.cu)
  foreach(own core/choice gemm/gpu_product nn/attention_cudnn)
    list(REMOVE_ITEM sources ${CMAKE_CURRENT_SOURCE_DIR}/${own}.cu)
  endforeach()
  # As CUDA reads them: any pointer may be cast to a vector's, and an sm_90 is meant. Warnings are nvcc's to give.
  set_source_files_properties(${sources} PROPERTIES LANGUAGE CXX INCLUDE_DIRECTORIES ${simulated_gpu}/include
                              COMPILE_OPTIONS "-xc++;-fno-strict-aliasing;-w" COMPILE_DEFINITIONS __CUDA_ARCH__=900)
  if(room STREQUAL core)
    list(APPEND sources ${simulated_gpu}/simulated_gpu.cpp ${simulated_gpu}/choice.cpp)
    set_source_files_properties(${simulated_gpu}/simulated_gpu.cpp PROPERTIES COMPILE_OPTIONS -frounding-math
                                INCLUDE_DIRECTORIES ${simulated_gpu}/include)
  elseif(room STREQUAL gemm)
    list(APPEND sources ${simulated_gpu}/gpu_product.cpp)
  elseif(room STREQUAL nn)
    list(APPEND sources ${simulated_gpu}/attention_cudnn.cpp)
  endif()
  set_source_files_properties(${simulated_gpu}/choice.cpp ${simulated_gpu}/gpu_product.cpp
                              ${simulated_gpu}/attention_cudnn.cpp PROPERTIES INCLUDE_DIRECTORIES ${simulated_gpu}/include)
  set(${result} ${sources} PARENT_SCOPE)
endfunction()
