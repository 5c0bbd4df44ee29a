// Declarations, enough of them to type-check the launcher, of the HIP names it uses (HIP API reference: device management,
// error handling, kernel launch).
#pragma once

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __host__ __attribute__((host))
#define __shared__ __attribute__((shared))

typedef struct ihipStream_t* hipStream_t;
typedef enum hipError_t { hipSuccess = 0 } hipError_t;
struct hipDeviceProp_t {
  char gcnArchName[256];
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
hipError_t hipGetDevice(int* device);
hipError_t hipGetDeviceProperties(hipDeviceProp_t* properties, int device);
hipError_t hipGetLastError();
const char* hipGetErrorString(hipError_t error);
extern "C" hipError_t hipLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, unsigned long lds, hipStream_t stream);
extern "C" hipError_t __hipPushCallConfiguration(dim3 grid, dim3 block, unsigned long lds, hipStream_t stream);
