# nibble_room(NAME DEPENDS ...): the library of one folder of src/. Every .cpp in the folder belongs to it, and every
# .cu where the build has CUDA.
# Rooms link only the rooms below them, so an arrow that points the wrong way does not link.
function(nibble_room name)
  cmake_parse_arguments(ROOM "" "" "DEPENDS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cpp)
  set(cuda_sources "")
  if(NIBBLE_CUDA)
    file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cu)
    list(APPEND sources ${cuda_sources})
  elseif(NIBBLE_SIMULATED_GPU)
    nibble_simulated_sources(${name} simulated_sources)
    list(APPEND sources ${simulated_sources})
  endif()
  set(target nibble_${name})
  if(sources)
    add_library(${target} STATIC ${sources})
    set(scope PUBLIC)
    target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:nibble_warnings>)
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(${target} ${scope} $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}>
                                                $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>
                                                $<INSTALL_INTERFACE:include/nibble>)
  target_compile_features(${target} ${scope} cxx_std_20)
  target_compile_options(${target} ${scope} $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)  # decides bits: docs/numerics.md
  if(cuda_sources)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${NIBBLE_CUDA_FLAGS}>)
    target_link_libraries(${target} PUBLIC CUDA::cudart_static)
  endif()
  target_link_libraries(${target} ${scope} ${ROOM_DEPENDS})
  set_property(GLOBAL APPEND PROPERTY NIBBLE_ROOMS ${target})
endfunction()

add_library(nibble_warnings INTERFACE)
target_compile_options(nibble_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
                            $<$<BOOL:${NIBBLE_WERROR}>:-Werror>>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra $<$<BOOL:${NIBBLE_WERROR}>:-Werror=all-warnings>>)
if(NIBBLE_SANITIZE)
  add_compile_options(-fsanitize=${NIBBLE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${NIBBLE_SANITIZE})
endif()
