# libbamba_cuda.so is built where nvcc is; the program needs neither it nor the toolkit.
#   BAMBA_CUDA=AUTO|ON|OFF              ON: nvcc must be there
#   BAMBA_NVTX=ON                       ranges of the model's blocks in NVIDIA's profilers
#   CMAKE_CUDA_ARCHITECTURES            default: the card at hand; without one, Hopper's own code and PTX that any card from compute capability 8.0 on can take
set(BAMBA_CUDA AUTO CACHE STRING "Build the CUDA device: AUTO (where nvcc is), ON, OFF")
set_property(CACHE BAMBA_CUDA PROPERTY STRINGS AUTO ON OFF)
option(BAMBA_NVTX "Name the model's blocks for NVIDIA's profilers" OFF)
set(BAMBA_HAS_CUDA OFF)
if(BAMBA_CUDA AND NOT BAMBA_SANITIZE AND NOT BAMBA_FUZZ)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)  # where NVIDIA's packages put it, which is on no PATH
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE capability ERROR_QUIET RESULT_VARIABLE missing)
      if(missing EQUAL 0 AND capability MATCHES "^([0-9]+)\\.([0-9])" AND NOT "${CMAKE_MATCH_1}${CMAKE_MATCH_2}" STREQUAL "90")
        set(CMAKE_CUDA_ARCHITECTURES "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real")
      else()
        set(CMAKE_CUDA_ARCHITECTURES 90a-real 80-virtual)
      endif()
    endif()
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # which CMake 3.25 does not know of nvcc 13
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    enable_language(CUDA)
    if(BAMBA_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${BAMBA_CCACHE})
    endif()
    set(BAMBA_HAS_CUDA ON)
  elseif(BAMBA_CUDA STREQUAL ON)
    message(FATAL_ERROR "BAMBA_CUDA=ON, but nvcc was not found; set CMAKE_CUDA_COMPILER or CUDACXX to it")
  endif()
endif()
