# cmake --build build/release --target package: bamba_VERSION_ARCHITECTURE.deb with what a user of the program needs; the rooms' libraries and headers stay out.
set(BAMBA_MAINTAINER "bamba.cpp maintainers <maintainers@bamba.invalid>" CACHE STRING "Who answers for the Debian package: Name <address>")

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "${BAMBA_MAINTAINER}")
set(CPACK_INSTALL_CMAKE_PROJECTS "${PROJECT_BINARY_DIR};bamba;program;/")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_STRIP_FILES ON)
set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/cmake/debian_layout.cmake)
set(CPACK_BAMBA_DEBIAN_FILES ${PROJECT_SOURCE_DIR}/cmake/debian)

set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "run, measure, convert and verify Bamba language models")
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION
    "The Bamba models are hybrids of Mamba-2 and attention layers. This program
generates text with them on CPUs and NVIDIA GPUs, measures their perplexity, compares
them with other implementations, and converts their files. A small model
comes along.")
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
include(CPack)
