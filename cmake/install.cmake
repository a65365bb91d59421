# cmake --install: the component `program` (with the model that it finds beside itself, documents, manual, completions) and the component `development`, the
# rooms as a package for find_package(bamba).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/bamba)
configure_package_config_file(cmake/bambaConfig.cmake.in ${PROJECT_BINARY_DIR}/bambaConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/bambaConfigVersion.cmake COMPATIBILITY SameMinorVersion)

install(TARGETS bamba COMPONENT program)
if(BAMBA_HAS_CUDA)
  install(TARGETS bamba_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/bamba COMPONENT program)
endif()
install(DIRECTORY models/mini DESTINATION ${CMAKE_INSTALL_DATADIR}/bamba/models COMPONENT program)
install(FILES README.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT program)
install(FILES ${BAMBA_SHELL_DIR}/bamba.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT program)
install(FILES ${BAMBA_SHELL_DIR}/bamba DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions COMPONENT program)
install(FILES ${BAMBA_SHELL_DIR}/_bamba DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions COMPONENT program)
install(EXPORT bambaTargets NAMESPACE bamba:: DESTINATION ${package_dir} COMPONENT development)
install(FILES ${PROJECT_BINARY_DIR}/bambaConfig.cmake ${PROJECT_BINARY_DIR}/bambaConfigVersion.cmake cmake/dependencies.cmake DESTINATION ${package_dir}
        COMPONENT development)
