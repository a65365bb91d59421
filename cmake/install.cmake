# cmake --install: the program, the model it finds beside itself, the documents, and the rooms as a package for find_package(bamba).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/bamba)
configure_package_config_file(cmake/bambaConfig.cmake.in ${PROJECT_BINARY_DIR}/bambaConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/bambaConfigVersion.cmake COMPATIBILITY SameMinorVersion)

install(TARGETS bamba)
install(DIRECTORY models/mini DESTINATION ${CMAKE_INSTALL_DATADIR}/bamba/models)
install(FILES README.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(EXPORT bambaTargets NAMESPACE bamba:: DESTINATION ${package_dir})
install(FILES ${PROJECT_BINARY_DIR}/bambaConfig.cmake ${PROJECT_BINARY_DIR}/bambaConfigVersion.cmake cmake/dependencies.cmake DESTINATION ${package_dir})
