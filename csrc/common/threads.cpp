// The flag by which libstdc++ leaves out atomic instructions while a process has one thread (ext/atomicity.h), as our own constant:
// glibc has it since 2.32, and a library that asks for it would not load on the older systems that torch itself still serves.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
