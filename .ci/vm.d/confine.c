/* Runs a program under a filter of system calls: confine FILTER PROGRAM [ARGUMENT]... */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **arguments) {
    static struct sock_filter code[65535];
    FILE *file = count > 2 ? fopen(arguments[1], "rb") : NULL;
    if (!file) {
        perror("confine: the filter");
        return 125;
    }
    struct sock_fprog program = {(unsigned short)fread(code, sizeof *code, 65535, file), code};
    fclose(file);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) {
        perror("confine: seccomp");
        return 125;
    }
    execv(arguments[2], arguments + 2);
    perror("confine: the program");
    return 125;
}
