# CUDNN::cudnn and CUDNN::frontend: cuDNN 9 and the C++ headers of cudnn-frontend. CUDNN_ROOT may name where
# cuDNN is (include/, lib/), beside the CUDA toolkit; CUDNN_FRONTEND_ROOT where the headers are (include/).
set(cudnn_hints ${CUDAToolkit_LIBRARY_ROOT} ${CUDAToolkit_LIBRARY_DIR}/.. ${CUDAToolkit_TARGET_DIR})
find_path(CUDNN_INCLUDE_DIR cudnn_graph.h HINTS ${cudnn_hints} PATH_SUFFIXES include)
find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 NAMES_PER_DIR HINTS ${cudnn_hints} PATH_SUFFIXES lib lib64)
find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h
          HINTS ${CUDNN_FRONTEND_ROOT} $ENV{CUDNN_FRONTEND_ROOT} ${PROJECT_SOURCE_DIR}/build/cuda-packages
          PATH_SUFFIXES include)
if(NOT CUDNN_INCLUDE_DIR OR NOT CUDNN_LIBRARY)
  message(FATAL_ERROR "A CUDA build needs cuDNN 9 with its headers: install it, or set CUDNN_ROOT to where it is")
endif()
if(NIBBLE_CUDA AND NOT CUDNN_FRONTEND_INCLUDE_DIR)  # to build nibble; not to link what is installed
  message(FATAL_ERROR "A CUDA build needs the headers of cudnn-frontend: run scripts/install_cuda_packages.sh, or "
                      "set CUDNN_FRONTEND_ROOT to where they are")
endif()
if(NOT TARGET CUDNN::cudnn)
  add_library(CUDNN::cudnn UNKNOWN IMPORTED)
  set_target_properties(CUDNN::cudnn PROPERTIES IMPORTED_LOCATION ${CUDNN_LIBRARY}
                                                INTERFACE_INCLUDE_DIRECTORIES ${CUDNN_INCLUDE_DIR})
endif()
if(CUDNN_FRONTEND_INCLUDE_DIR AND NOT TARGET CUDNN::frontend)
  add_library(CUDNN::frontend INTERFACE IMPORTED)
  set_target_properties(CUDNN::frontend PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${CUDNN_FRONTEND_INCLUDE_DIR})
endif()
