# The installed package: find_package(nibble) gives nibble::nibble; the program goes to bin/.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
get_property(rooms GLOBAL PROPERTY NIBBLE_ROOMS)
install(TARGETS ${rooms} nibble_all EXPORT nibbleTargets)
install(TARGETS nibble_program RUNTIME)
install(DIRECTORY src/ ${PROJECT_BINARY_DIR}/include/ DESTINATION include/nibble FILES_MATCHING PATTERN "*.h")
install(DIRECTORY configs DESTINATION ${CMAKE_INSTALL_DATADIR}/nibble)
install(EXPORT nibbleTargets NAMESPACE nibble:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
write_basic_package_version_file(nibbleConfigVersion.cmake COMPATIBILITY SameMinorVersion)
configure_file(cmake/nibbleConfig.cmake.in nibbleConfig.cmake @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/nibbleConfig.cmake cmake/NibbleDependencies.cmake cmake/FindOneDNN.cmake
              cmake/FindCUDNN.cmake ${CMAKE_CURRENT_BINARY_DIR}/nibbleConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nibble)
