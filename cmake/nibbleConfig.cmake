include(${CMAKE_CURRENT_LIST_DIR}/NibbleDependencies.cmake)
include(${CMAKE_CURRENT_LIST_DIR}/nibbleTargets.cmake)
