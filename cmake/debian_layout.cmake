# Run by CPack on the staged files: the places and forms that Debian's policy asks for, where they are not those of `cmake --install`.
set(usr ${CPACK_TEMPORARY_INSTALL_DIRECTORY}/usr)
set(doc ${usr}/share/doc/bamba)

file(REMOVE ${doc}/LICENSE)
file(COPY ${CPACK_BAMBA_DEBIAN_FILES}/copyright DESTINATION ${doc})
file(COPY ${CPACK_BAMBA_DEBIAN_FILES}/changelog DESTINATION ${doc})
file(RENAME ${usr}/share/zsh/site-functions ${usr}/share/zsh/vendor-completions)
foreach(file IN ITEMS ${doc}/changelog ${usr}/share/man/man1/bamba.1)
  execute_process(COMMAND gzip -9n ${file} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
