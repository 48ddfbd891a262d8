#include <cuda_runtime.h>

#include "../ops.h"

namespace pyface::cuda {

const char* error_string(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) == cudaSuccess) return version;
  cudaGetLastError();  // no driver: that is the result, not an error of the next launch
  return 0;
}

}  // namespace pyface::cuda
