# Installs the build in -D BUILD=DIR below -D WORK=DIR, then does what a user would: calls the program through a link from another directory, where it has to
# find its own model, and builds a project of its own on the installed rooms.
cmake_minimum_required(VERSION 3.25)

function(run expected)
  cmake_parse_arguments(RUN "" "IN" "COMMAND" ${ARGN})
  execute_process(COMMAND ${RUN_COMMAND} WORKING_DIRECTORY ${RUN_IN} OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE result)
  if(NOT result EQUAL 0 OR NOT output MATCHES "${expected}")
    message(FATAL_ERROR "${RUN_COMMAND}: ${result}: expected '${expected}' in:\n${output}")
  endif()
endfunction()

set(ENV{BAMBA_MODEL} "")
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK}/elsewhere)
run("" IN ${WORK} COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
file(CREATE_LINK ${WORK}/prefix/bin/bamba ${WORK}/elsewhere/b SYMBOLIC)
run("^0 273 301 94 214\n" IN ${WORK}/elsewhere COMMAND ./b tokenize "hello\n")
run("^The [^\n]*\n" IN ${WORK}/elsewhere COMMAND ./b run -p The -n 3 --greedy)
foreach(file IN ITEMS share/man/man1/bamba.1 share/bash-completion/completions/bamba share/zsh/site-functions/_bamba)
  file(READ ${WORK}/prefix/${file} text)
  if(NOT text MATCHES "perplexity")
    message(FATAL_ERROR "${file} was installed without bamba's commands in it")
  endif()
endforeach()

run("" IN ${WORK} COMMAND ${CMAKE_COMMAND} -G Ninja -S ${CMAKE_CURRENT_LIST_DIR}/package -B ${WORK}/consumer -D CMAKE_PREFIX_PATH=${WORK}/prefix)
run("" IN ${WORK} COMMAND ${CMAKE_COMMAND} --build ${WORK}/consumer)
run("16,251,632 parameters" IN ${WORK} COMMAND consumer/consumer prefix/share/bamba/models/mini)
