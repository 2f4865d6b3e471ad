/* Loaded into the user-mode kernel before libc: lets it run on processors whose register file is larger than it knows, and
 * keeps what it flushes in the machine's memory.
 *
 * The kernel saves a process's vector registers in a buffer of fixed size. Where the processor has tile registers (AMX), the
 * machine gives such a buffer as much as it holds, but takes back a whole one only ("a whole standard-format XSAVE buffer is
 * needed", else EFAULT), and the kernel panics. What is missing is what no process in the node uses, so it is given as zeros:
 * the header of the area, which the kernel does hold, says that those registers are in their initial state.
 *
 * A test cuts the power of a node, never of the machine, whose cache keeps every write of a node that was killed. So its
 * flushes need not reach the machine's disk, which other nodes work on, too; with LAB_FLUSHES in the environment they do.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Not on the stack, which is small in this kernel. It has one processor and is never interrupted into another process here. */
static unsigned char whole[32768] __attribute__((aligned(64)));
static long (*real_ptrace)(int, long, void *, void *);
static unsigned int whole_size;
static int flushes;

__attribute__((constructor)) static void learn(void)
{
    unsigned int eax, ecx, edx;

    real_ptrace = (long (*)(int, long, void *, void *))dlsym(RTLD_NEXT, "ptrace");
    __cpuid_count(0xd, 0, eax, whole_size, ecx, edx);
    flushes = getenv("LAB_FLUSHES") != NULL;
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    long pid = va_arg(arguments, long);
    void *address = va_arg(arguments, void *);
    struct iovec *data = va_arg(arguments, void *);
    va_end(arguments);

    if (request != PTRACE_SETREGSET || (long)address != NT_X86_XSTATE || data->iov_len >= whole_size
        || whole_size > sizeof(whole))
        return real_ptrace(request, pid, address, data);
    memcpy(whole, data->iov_base, data->iov_len);
    memset(whole + data->iov_len, 0, whole_size - data->iov_len);
    struct iovec area = {whole, whole_size};
    return real_ptrace(request, pid, address, &area);
}

int fsync(int fd)
{
    return flushes ? (int)syscall(SYS_fsync, fd) : 0;
}

int fdatasync(int fd)
{
    return flushes ? (int)syscall(SYS_fdatasync, fd) : 0;
}
